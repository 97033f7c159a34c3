// CTC: array -> view -> check -> allocate -> release the GIL -> call. Lengths and targets come as arrays of int64 that
// nobody else has; python/fusedrnn/ops/ctc_loss.py makes them.

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "bindings/interrupt.h"
#include "bindings/numpy/labels.h"
#include "bindings/register.h"
#include "cpu/runtime/pool.h"
#include "ops/ctc_loss/beam.h"
#include "ops/ctc_loss/paths.h"
#include "ops/ctc_loss/run.h"

namespace fusedrnn {
namespace {

// A batch whose arguments have been checked.
struct CtcBatch {
  py::array logits;
  Integers targets;
  Index steps, rows, classes, blank;
  std::vector<CtcRow> row;
  Index alphas = 0;  // elements of forward variables of all rows
};

py::array logits_of(py::handle object) {
  const py::array logits = require_floats(object, "logits");
  require_shape(logits, "logits", {"T", "B", "C"});
  if (logits.shape(2) < 1) wrong_shape("logits", "(T, B, C) with C at least 1", logits);
  require_unit_stride(logits, "logits");
  return logits;
}

CtcBatch batch_of(py::handle logits, const py::array& targets, const py::array& input_lengths,
                  const py::array& target_lengths, Index blank) {
  CtcBatch batch;
  batch.logits = logits_of(logits);
  batch.steps = batch.logits.shape(0);
  batch.rows = batch.logits.shape(1);
  batch.classes = batch.logits.shape(2);
  batch.blank = require_blank(blank, batch.classes);
  batch.targets = require_integers(targets, "targets", -1);
  const Integers steps = require_integers(input_lengths, "input_lengths", batch.rows);
  const Integers lengths = require_integers(target_lengths, "target_lengths", batch.rows);
  Index taken = 0;
  for (Index b = 0; b < batch.rows; ++b) {
    const Index length = lengths.data()[b];
    require_length(steps.data()[b], batch.steps, "input_lengths");
    require_length(length, batch.targets.size() - taken, "target_lengths");
    for (Index i = 0; i < length; ++i) require_label(batch.targets.data()[taken + i], batch.classes, blank, b);
    batch.row.push_back({steps.data()[b], batch.targets.data() + taken, length, batch.alphas});
    taken += length;
    batch.alphas += batch.row.back().steps * ctc_frame(length);
  }
  return batch;
}

// For a device's call: the labels of all rows one after the other.
void check_targets(const py::array& targets, const py::array& target_lengths, Index classes, Index blank) {
  const Integers labels = require_integers(targets, "targets", -1);
  const Integers lengths = require_integers(target_lengths, "target_lengths", -1);
  Index taken = 0;
  for (Index b = 0; b < lengths.size(); ++b) {
    require_length(lengths.data()[b], labels.size() - taken, "target_lengths");
    for (const Index end = taken + lengths.data()[b]; taken < end; ++taken)
      require_label(labels.data()[taken], classes, blank, b);
  }
}

template <class Real>
Sequence<const Real> sequence_of(const py::array& array) {
  return {data_of<Real>(array), stride_of(array, 0), stride_of(array, 1)};
}

struct CtcTape {
  CtcBatch batch;
  py::array losses;       // (B,)
  py::array normalizers;  // (2, T, B): the largest logit, and the log of the sum of exponentials relative to it
  Buffer alphas;

  std::size_t bytes() const {
    return static_cast<std::size_t>(losses.nbytes() + normalizers.nbytes() + batch.targets.nbytes() +
                                    batch.alphas * losses.itemsize());
  }
};

template <class Real>
CtcLossArguments<Real> arguments_of(const CtcBatch& batch, const py::array& losses, const py::array& normalizers,
                                    const Buffer& alphas) {
  CtcLossArguments<Real> a = {};
  a.rows = batch.rows;
  a.classes = batch.classes;
  a.blank = batch.blank;
  a.row = batch.row.data();
  a.steps = batch.steps;
  a.logits = sequence_of<Real>(batch.logits);
  a.losses = const_cast<Real*>(data_of<Real>(losses));
  a.maximum = const_cast<Real*>(data_of<Real>(normalizers));
  a.log_sum = a.maximum + batch.steps * batch.rows;
  a.alphas = alphas.as<Real>();
  return a;
}

template <class Real>
void forward_as(const CtcTape& tape) {
  const CtcLossArguments<Real> a = arguments_of<Real>(tape.batch, tape.losses, tape.normalizers, tape.alphas);
  run_without_gil([&](const Interrupt& interrupt) { return run_ctc_forward(a, num_threads(), interrupt); });
}

// (losses, tape), the tape None unless training.
py::tuple forward(py::handle logits, const py::array& targets, const py::array& input_lengths,
                  const py::array& target_lengths, Index blank, bool training) {
  auto tape = std::make_unique<CtcTape>();
  tape->batch = batch_of(logits, targets, input_lengths, target_lengths, blank);
  const CtcBatch& batch = tape->batch;
  const py::dtype dtype = batch.logits.dtype();
  tape->losses = new_array(dtype, {batch.rows});
  tape->normalizers = new_array(dtype, {2, batch.steps, batch.rows});
  if (training) tape->alphas = Buffer(static_cast<std::size_t>(batch.alphas * dtype.itemsize()));
  dtype.itemsize() == 4 ? forward_as<float>(*tape) : forward_as<double>(*tape);
  const py::array losses = tape->losses;
  return py::make_tuple(losses, training ? py::cast(std::move(tape)) : py::none());
}

template <class Real>
void backward_as(const CtcTape& tape, const py::array& scale, py::array& dlogits) {
  CtcLossArguments<Real> a = arguments_of<Real>(tape.batch, tape.losses, tape.normalizers, tape.alphas);
  a.scale = data_of<Real>(scale);
  a.dlogits = {mutable_data_of<Real>(dlogits), a.rows * a.classes, a.classes};
  run_without_gil([&](const Interrupt& interrupt) { return run_ctc_backward(a, num_threads(), interrupt); });
}

// scale: the gradient of each row's loss.
py::array backward(const CtcTape& tape, const py::array& scale) {
  const CtcBatch& batch = tape.batch;
  const py::dtype dtype = batch.logits.dtype();
  require_array(scale, "scale", dtype);
  require_shape(scale, "scale", {batch.rows});
  require_contiguous(scale, "scale");
  py::array dlogits = new_array(dtype, {batch.steps, batch.rows, batch.classes});
  dtype.itemsize() == 4 ? backward_as<float>(tape, scale, dlogits) : backward_as<double>(tape, scale, dlogits);
  return dlogits;
}

[[noreturn]] void refuse_alignment(Index row) {
  throw py::value_error("logits must let every row be aligned; row " + std::to_string(row) +
                        " has no path of its targets with a probability above 0");
}
// For a device's call: the log-probabilities of the paths that it found.
void require_aligned(const py::array_t<double>& log_prob) {
  for (Index b = 0; b < log_prob.size(); ++b)
    if (!(log_prob.data()[b] > -std::numeric_limits<double>::infinity())) refuse_alignment(b);
}

template <class Real>
py::tuple align_as(const CtcBatch& batch) {
  Integers path({batch.steps, batch.rows});
  py::array log_prob = new_array(batch.logits.dtype(), {batch.rows});
  std::fill_n(path.mutable_data(), path.size(), batch.blank);
  const Sequence<const Real> logits = sequence_of<Real>(batch.logits);
  std::int64_t* const classes = path.mutable_data();
  Real* const results = mutable_data_of<Real>(log_prob);
  Index impossible = -1;
  run_without_gil([&](const Interrupt& interrupt) {
    for (Index b = 0; b < batch.rows && impossible < 0; ++b) {
      if (interrupt.asked(interrupt.context)) return false;
      const double found = ctc_best_path(logits, b, batch.row[static_cast<std::size_t>(b)], batch.classes, batch.blank,
                                         classes + b, batch.rows);
      if (!(found > -std::numeric_limits<double>::infinity())) impossible = b;
      results[b] = static_cast<Real>(found);
    }
    return true;
  });
  if (impossible >= 0) refuse_alignment(impossible);
  return py::make_tuple(path, log_prob);
}

py::tuple align(py::handle logits, const py::array& targets, const py::array& input_lengths,
                const py::array& target_lengths, Index blank) {
  const CtcBatch batch = batch_of(logits, targets, input_lengths, target_lengths, blank);
  return batch.logits.itemsize() == 4 ? align_as<float>(batch) : align_as<double>(batch);
}

struct Decoded {
  py::array logits;
  Integers lengths;
  Index rows, classes, blank;
};

Decoded decoded_of(py::handle logits, const py::array& lengths, Index blank) {
  Decoded d;
  d.logits = logits_of(logits);
  d.rows = d.logits.shape(1);
  d.classes = d.logits.shape(2);
  d.blank = require_blank(blank, d.classes);
  d.lengths = require_integers(lengths, "lengths", d.rows);
  for (Index b = 0; b < d.rows; ++b) require_length(d.lengths.data()[b], d.logits.shape(0), "lengths");
  return d;
}

py::array labels_array(const std::vector<std::int64_t>& labels) {
  return Integers(static_cast<Index>(labels.size()), labels.data());
}

template <class Real>
py::list greedy_as(const Decoded& d) {
  const Sequence<const Real> logits = sequence_of<Real>(d.logits);
  std::vector<std::vector<std::int64_t>> rows(static_cast<std::size_t>(d.rows));
  run_without_gil([&](const Interrupt& interrupt) {
    for (Index b = 0; b < d.rows; ++b) {
      if (interrupt.asked(interrupt.context)) return false;
      rows[static_cast<std::size_t>(b)] = ctc_greedy_labels(logits, b, d.lengths.data()[b], d.classes, d.blank);
    }
    return true;
  });
  py::list result;
  for (const auto& labels : rows) result.append(labels_array(labels));
  return result;
}

py::list greedy(py::handle logits, const py::array& lengths, Index blank) {
  const Decoded d = decoded_of(logits, lengths, blank);
  return d.logits.itemsize() == 4 ? greedy_as<float>(d) : greedy_as<double>(d);
}

// score: None, or called with a prefix, a tuple of labels, and a label.
CtcBeamOptions::Score score_of(py::handle score) {
  if (score.is_none()) return {};
  return [score](const std::vector<std::int64_t>& prefix, std::int64_t label) {
    const py::gil_scoped_acquire held;
    py::tuple labels(prefix.size());
    for (std::size_t i = 0; i < prefix.size(); ++i) labels[i] = prefix[i];
    const double value = score(labels, label).cast<double>();
    if (value != value) throw py::value_error("score must give a number, not nan");
    return value;
  };
}

template <class Real>
py::list beam_as(const Decoded& d, const CtcBeamOptions& options) {
  const Sequence<const Real> logits = sequence_of<Real>(d.logits);
  std::vector<std::vector<CtcHypothesis>> rows(static_cast<std::size_t>(d.rows));
  run_without_gil([&](const Interrupt& interrupt) {
    for (Index b = 0; b < d.rows; ++b)
      if (!ctc_beam_search(logits, b, d.lengths.data()[b], d.classes, d.blank, options, interrupt,
                           rows[static_cast<std::size_t>(b)]))
        return false;
    return true;
  });
  py::list result;
  for (const auto& row : rows) {
    py::list found;
    for (const CtcHypothesis& one : row) found.append(py::make_tuple(labels_array(one.labels), one.log_prob));
    result.append(found);
  }
  return result;
}

py::list beam(py::handle logits, const py::array& lengths, Index blank, Index width, Index top, double prune,
              Index classes, py::handle score) {
  const Decoded d = decoded_of(logits, lengths, blank);
  const CtcBeamOptions options = {width, top, prune, classes, score_of(score)};
  return d.logits.itemsize() == 4 ? beam_as<float>(d, options) : beam_as<double>(d, options);
}

}  // namespace

void register_ctc_loss(py::module_& operation) {
  operation.attr("Tape") =
      py::class_<CtcTape>(operation, "CtcTape", "What the backward pass needs; it refers to the logits.")
          .def_property_readonly("nbytes", &CtcTape::bytes)
          .def_property_readonly("dtype", [](const CtcTape& tape) { return tape.losses.dtype(); })
          .def_static("__new__", &only_from_forward);
  operation.def("forward", &forward);
  operation.def("backward", &backward);
  operation.def("check_targets", &check_targets);
  operation.def("require_aligned", &require_aligned);
  operation.def("align", &align);
  operation.def("greedy_decode", &greedy);
  operation.def("beam_decode", &beam);
}

}  // namespace fusedrnn
