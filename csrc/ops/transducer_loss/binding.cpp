// transducer_loss: array -> view -> check -> allocate -> release the GIL -> call. Lengths and targets come as arrays of
// int64 that nobody else has; python/fusedrnn/ops/transducer_loss.py makes them.
#include "ops/linear/binding.h"

#include <vector>

#include "bindings/interrupt.h"
#include "bindings/numpy/labels.h"
#include "bindings/register.h"
#include "cpu/runtime/pool.h"
#include "ops/transducer_loss/run.h"

namespace fusedrnn {
namespace {

struct TransducerTape {
  LinearInputs inputs;  // x is the encoder
  py::array predictor;
  Integers targets;  // (B, U)
  Index steps, batch, longest, blank;
  std::vector<TransducerRow> row;
  Index cells = 0;
  py::array losses;  // (B,)
  Buffer kept;  // (4, cells): the largest logit, the log of the sum relative to it, log p of the blank, of the label

  std::size_t bytes() const { return static_cast<std::size_t>(losses.nbytes() + targets.nbytes()) + kept.bytes(); }
};

py::array sequence_of(py::handle object, const std::string& name, const py::dtype& dtype, const Shape& shape) {
  const py::array array = require_array(object, name, dtype, Use::input);
  require_shape(array, name, shape);
  require_unit_stride(array, name);
  return array;
}

void check_arrays(TransducerTape& tape, py::handle encoder, py::handle predictor, py::handle weight, py::handle bias) {
  const py::dtype dtype = require_floats(encoder, "encoder").dtype();
  LinearInputs& inputs = tape.inputs;
  inputs.x = sequence_of(encoder, "encoder", dtype, {"T", "B", "J"});
  tape.steps = inputs.x.shape(0);
  tape.batch = inputs.x.shape(1);
  const Index features = inputs.x.shape(2);
  if (features < 1) wrong_shape("encoder", "(T, B, J) with J at least 1", inputs.x);
  tape.predictor = sequence_of(predictor, "predictor", dtype, {"U + 1", tape.batch, features});
  if (tape.predictor.shape(0) < 1) wrong_shape("predictor", "(U + 1, B, J) with U at least 0", tape.predictor);
  tape.longest = tape.predictor.shape(0) - 1;
  check_linear_parameters(inputs, weight, bias, "V", features);
}

void check_rows(TransducerTape& tape, const py::array& targets, const py::array& input_lengths,
                const py::array& target_lengths, Index blank) {
  const Index classes = tape.inputs.weight.shape(0);
  tape.blank = require_blank(blank, classes);
  tape.targets = require_integers(targets, "targets", tape.batch * tape.longest);
  const Integers steps = require_integers(input_lengths, "input_lengths", tape.batch);
  const Integers lengths = require_integers(target_lengths, "target_lengths", tape.batch);
  Index frames = 0;
  for (Index b = 0; b < tape.batch; ++b) {
    const TransducerRow row = {steps.data()[b], tape.targets.data() + b * tape.longest, lengths.data()[b], tape.cells,
                               frames};
    require_length(row.steps, tape.steps, "input_lengths");
    require_length(row.length, tape.longest, "target_lengths");
    for (Index u = 0; u < row.length; ++u) require_label(row.targets[u], classes, blank, b);
    tape.cells += row.steps * (row.length + 1);
    frames += row.steps;
    tape.row.push_back(row);
  }
}

template <class Real>
TransducerLossArguments<Real> arguments_of(const TransducerTape& tape) {
  TransducerLossArguments<Real> a = {};
  const LinearInputs& inputs = tape.inputs;
  a.rows = tape.cells;
  a.in_features = inputs.weight.shape(1);
  a.out_features = inputs.weight.shape(0);
  a.weight = data_of<Real>(inputs.weight);
  a.bias = inputs.bias ? data_of<Real>(*inputs.bias) : nullptr;
  a.batch = tape.batch;
  a.blank = tape.blank;
  a.row = tape.row.data();
  a.encoder = {data_of<Real>(inputs.x), stride_of(inputs.x, 0), stride_of(inputs.x, 1)};
  a.predictor = {data_of<Real>(tape.predictor), stride_of(tape.predictor, 0), stride_of(tape.predictor, 1)};
  a.losses = const_cast<Real*>(data_of<Real>(tape.losses));
  a.maximum = tape.kept.as<Real>();
  a.log_sum = a.maximum + tape.cells;
  a.log_blank = a.log_sum + tape.cells;
  a.log_label = a.log_blank + tape.cells;
  return a;
}

template <class Real>
void forward_as(const TransducerTape& tape) {
  const TransducerLossArguments<Real> a = arguments_of<Real>(tape);
  run_without_gil([&](const Interrupt& interrupt) { return run_transducer_forward(a, interrupt); });
}

// (losses, tape)
py::tuple forward(py::handle encoder, py::handle predictor, py::handle weight, py::handle bias,
                  const py::array& targets, const py::array& input_lengths, const py::array& target_lengths,
                  Index blank) {
  auto tape = std::make_unique<TransducerTape>();
  check_arrays(*tape, encoder, predictor, weight, bias);
  check_rows(*tape, targets, input_lengths, target_lengths, blank);
  const py::dtype dtype = tape->inputs.x.dtype();
  tape->losses = new_array(dtype, {tape->batch});
  tape->kept = Buffer(static_cast<std::size_t>(4 * tape->cells * dtype.itemsize()));
  dtype.itemsize() == 4 ? forward_as<float>(*tape) : forward_as<double>(*tape);
  const py::array losses = tape->losses;
  return py::make_tuple(losses, std::move(tape));
}

template <class Real>
py::tuple backward_as(const TransducerTape& tape, const py::array& scale) {
  TransducerLossArguments<Real> a = arguments_of<Real>(tape);
  const py::dtype dtype = tape.losses.dtype();
  py::array dencoder = new_gradient(dtype, {tape.steps, tape.batch, a.in_features}, false);
  py::array dpredictor = new_gradient(dtype, {tape.longest + 1, tape.batch, a.in_features}, false);
  py::array dweight = new_gradient(dtype, {a.out_features, a.in_features}, false);
  py::array dbias = new_gradient(dtype, {a.out_features}, false);
  a.scale = data_of<Real>(scale);
  a.dencoder = mutable_data_of<Real>(dencoder);
  a.dpredictor = mutable_data_of<Real>(dpredictor);
  a.dweight = mutable_data_of<Real>(dweight);
  a.dbias = a.bias ? mutable_data_of<Real>(dbias) : nullptr;
  run_without_gil([&](const Interrupt& interrupt) { return run_transducer_backward(a, interrupt); });
  return py::make_tuple(dencoder, dpredictor, dweight, a.bias ? py::object(dbias) : py::none());
}

// scale: the gradient of each row's loss.
py::tuple backward(const TransducerTape& tape, const py::array& scale) {
  require_array(scale, "scale", tape.losses.dtype());
  require_shape(scale, "scale", {tape.batch});
  require_contiguous(scale, "scale");
  return tape.losses.itemsize() == 4 ? backward_as<float>(tape, scale) : backward_as<double>(tape, scale);
}

}  // namespace

void register_transducer_loss(py::module_& operation) {
  operation.attr("Tape") =
      py::class_<TransducerTape>(operation, "TransducerTape",
                                 "What the backward pass needs; it refers to encoder, predictor, weight and bias.")
          .def_property_readonly("nbytes", &TransducerTape::bytes)
          .def_property_readonly("dtype", [](const TransducerTape& tape) { return tape.losses.dtype(); })
          .def_static("__new__", &only_from_forward);
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
