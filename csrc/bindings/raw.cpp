// Layers on torch's tensors, for its adapter: a call must cost microseconds there, so reading and checking the tensors
// is done here and not in Python. What the engine does not take is no error but an answer, upon which Python finds out
// why.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bindings/interrupt.h"
#include "bindings/register.h"
#include "bindings/tensor_reader.h"
#include "core/recurrent.h"
#include "core/single_step.h"
#include "core/step_team.h"
#include "cpu/isa.h"

namespace fusedrnn {
namespace {

namespace py = pybind11;

using Address = std::uintptr_t;                          // 0: none
using Lists = std::optional<std::shared_ptr<RowLists>>;  // none: every row has all steps

std::shared_ptr<RowLists> padded_lists(Index steps, Index rows, Address lengths, Address reset, Index reset_time,
                                       Index reset_row) {
  const auto* first = reinterpret_cast<const std::int64_t*>(lengths);
  if (first && std::any_of(first, first + rows, [steps](std::int64_t n) { return n < 0 || n > steps; }))
    throw py::value_error("lengths must lie in [0, " + std::to_string(steps) + "]");
  return std::make_shared<RowLists>(steps, rows, first, reinterpret_cast<const bool*>(reset), reset_time, reset_row);
}

std::shared_ptr<RowLists> packed_lists(Index steps, Address active, Index packed_rows) {
  const auto* counts = reinterpret_cast<const std::int64_t*>(active);
  Index sum = 0;
  for (Index s = 0; s < steps; ++s) {
    if (counts[s] < 1 || counts[s] > packed_rows - sum || (s > 0 && counts[s] > counts[s - 1]))
      throw py::value_error("batch_sizes must be positive, never grow, and add up to the rows of data");
    sum += counts[s];
  }
  if (sum != packed_rows) throw py::value_error("batch_sizes must add up to the rows of data");
  return std::make_shared<RowLists>(steps, counts);
}

// How the axes of a sequence lie: of time and of rows, -1 where there is none.
struct Form {
  int time, row;
  bool packed;

  static Form of(const std::string& name) {
    if (name == "time") return {0, 1, false};
    if (name == "batch") return {1, 0, false};
    if (name == "packed") return {-1, 0, true};
    if (name == "step") return {-1, 0, false};
    throw py::value_error("form must be time, batch, packed or step, not '" + name + "'");
  }
};

struct RawLayers {
  RecurrentConfig config;
  CellTraits traits;
  int bits;  // of an element
  bool bias;
  std::shared_ptr<const TensorReader> reader;
  std::vector<std::vector<Index>> parameter_shapes;  // in torch's order, without names

  void set_parameter_shapes() {
    const Index hidden = config.hidden_size, gates = traits.gates * hidden;
    for (int i = 0; i < config.layers * config.directions; ++i) {
      parameter_shapes.push_back({gates, config.input_of(i / config.directions)});
      parameter_shapes.push_back({gates, hidden});
      if (bias) parameter_shapes.insert(parameter_shapes.end(), 2, {gates});
      if (traits.peepholes) parameter_shapes.push_back({traits.peepholes, hidden});
    }
  }
};

// A call whose tensors have been read, and are kept. It is to be run at once: their storages may change afterwards.
class RawCall {
 public:
  RawCall(std::shared_ptr<const RawLayers> layers, const std::string& form, Index steps, Index rows, const Lists& lists)
      : layers_(std::move(layers)), form_(Form::of(form)), steps_(steps), rows_(rows), lists_(lists) {}

  // Whether the engine can read the tensors where they lie.
  bool read(py::handle x, py::handle h0, py::handle c0, const py::sequence& weights) {
    if (!read_sequence(x, layers_->config.input_size, x_) || !read_state(h0, h0_) || !read_state(c0, c0_)) return false;
    if (!x_.data && sequence_rows() > 0) return false;
    const auto& shapes = layers_->parameter_shapes;
    if (weights.size() != shapes.size()) return false;
    weights_.resize(shapes.size());
    for (std::size_t i = 0; i < shapes.size(); ++i)
      if (!read_weight(weights[i], shapes[i], weights_[i])) return false;
    kept_ = py::make_tuple(x, h0, c0, weights);
    return true;
  }

  // y, hn, cn and the tape are the caller's own, contiguous and of the right shapes; a tape makes it training.
  void forward(int threads, py::handle y, py::handle hn, py::handle cn, py::handle tape) const {
    layers_->bits == 32 ? run<float>(threads, own(y), own(hn), own(cn), own(tape).data)
                        : run<double>(threads, own(y), own(hn), own(cn), own(tape).data);
  }

  // A single step has no y but its h, and needs neither. False, with nothing done, where y, the tape or a gradient of
  // theirs is not what it has to be. dx and those that follow are the caller's own; they are set, not added to.
  bool backward(int threads, py::handle y, py::handle tape, py::handle dy, py::handle dhn, py::handle dcn,
                py::handle dx, py::handle dh0, py::handle dc0, const py::sequence& gradients) const {
    Backward b;
    const bool has_y = !(is_step() && y.is_none());
    if (has_y && !read_sequence(y, layers_->config.width(), b.y)) return false;
    if (!read_tape(tape, b.tape)) return false;
    if (!dy.is_none() && !read_sequence(dy, layers_->config.width(), b.dy)) return false;
    if (!read_state(dhn, b.dhn) || !read_state(dcn, b.dcn)) return false;
    b.dx = own(dx), b.dh0 = own(dh0), b.dc0 = own(dc0);
    for (const py::handle gradient : gradients) b.gradients.push_back(own(gradient));
    layers_->bits == 32 ? differentiate<float>(threads, b) : differentiate<double>(threads, b);
    return true;
  }

 private:
  struct Backward {
    TensorView y, tape, dy, dhn, dcn, dx, dh0, dc0;
    std::vector<TensorView> gradients;
  };

  std::shared_ptr<const RawLayers> layers_;
  Form form_;
  Index steps_, rows_;
  Lists lists_;
  TensorView x_, h0_, c0_;
  std::vector<TensorView> weights_;
  py::tuple kept_;

  Index sequence_rows() const { return form_.packed ? (*lists_)->packed_rows() : steps_ * rows_; }

  bool read(py::handle tensor, TensorView& view) const { return layers_->reader->read(tensor, layers_->bits, view); }
  TensorView own(py::handle tensor) const { return tensor.is_none() ? TensorView() : layers_->reader->view(tensor); }

  bool read_sequence(py::handle tensor, Index width, TensorView& view) const {
    if (!read(tensor, view) || !view.has_unit_stride()) return false;
    if (form_.time < 0) return view.has_shape({sequence_rows(), width});
    return form_.time == 0 ? view.has_shape({steps_, rows_, width}) : view.has_shape({rows_, steps_, width});
  }
  bool read_state(py::handle tensor, TensorView& view) const {
    if (tensor.is_none()) return true;
    const Index hidden = layers_->config.hidden_size, states = layers_->config.layers * layers_->config.directions;
    if (!read(tensor, view) || !view.is_contiguous()) return false;
    return is_step() ? view.has_shape({rows_, hidden}) : view.has_shape({states, rows_, hidden});
  }
  bool read_weight(py::handle tensor, const std::vector<Index>& shape, TensorView& view) const {
    if (!read(tensor, view) || !view.is_contiguous() || !view.data) return false;
    return shape.size() == 1 ? view.has_shape({shape[0]}) : view.has_shape({shape[0], shape[1]});
  }
  bool read_tape(py::handle tensor, TensorView& view) const {
    const Index elements = tape_row_elements(layers_->config) * sequence_rows();
    if (!read(tensor, view) || !view.has_shape({elements}) || !view.is_contiguous()) return false;
    return reinterpret_cast<std::uintptr_t>(view.data) % 64 == 0;
  }
  bool is_step() const { return form_.time < 0 && !form_.packed; }

  template <class Real>
  static Real* data(const TensorView& view) {
    return reinterpret_cast<Real*>(view.data);
  }
  template <class Real>
  StateArray<Real> state(const TensorView& view) const {
    return {data<Real>(view), rows_ * layers_->config.hidden_size, layers_->config.hidden_size};
  }
  template <class Real>
  Sequence<Real> sequence(const TensorView& view) const {
    const Index time = form_.time < 0 ? 0 : view.strides[static_cast<std::size_t>(form_.time)];
    const RowLists* given = lists_ ? lists_->get() : nullptr;
    return {data<Real>(view), time, view.strides[static_cast<std::size_t>(form_.row)],
            given ? given->starts() : nullptr};
  }

  // Tensors in torch's order of parameters as one Target of pointers for each direction.
  template <class Target, class Real>
  std::vector<Target> by_direction(const std::vector<TensorView>& views) const {
    std::vector<Target> result(static_cast<std::size_t>(layers_->config.layers * layers_->config.directions));
    const bool bias = layers_->bias, peephole = layers_->traits.peepholes > 0;
    if (views.size() != weights_.size()) throw py::value_error("gradients must be those of all parameters");
    std::size_t next = 0;
    const auto take = [&](bool there) { return there ? data<Real>(views[next++]) : nullptr; };
    for (Target& target : result) target = {take(true), take(true), take(bias), take(bias), take(peephole)};
    return result;
  }

  template <class Real>
  ForwardCall<Real> call_of(int threads, const TensorView& y) const {
    ForwardCall<Real> call;
    call.steps = steps_;
    call.rows = rows_;
    call.weights = by_direction<Weights<Real>, const Real>(weights_);
    call.x = sequence<const Real>(x_);
    call.y = sequence<Real>(y);
    call.h0 = state<const Real>(h0_);
    call.c0 = state<const Real>(c0_);
    call.threads = threads;
    if (lists_) call.lists = *lists_;
    return call;
  }
  std::shared_ptr<const RowLists> whole() const {
    return std::make_shared<const RowLists>(steps_, rows_, nullptr, nullptr, 0, 0);
  }

  template <class Real>
  void run(int threads, const TensorView& y, const TensorView& hn, const TensorView& cn, char* memory) const {
    ForwardCall<Real> call = call_of<Real>(threads, y);
    call.hn = state<Real>(hn);
    call.cn = state<Real>(cn);
    if (!memory && !lists_ && steps_ == 1 && single_step_pays(rows_)) {
      std::optional<py::gil_scoped_release> released;
      if (step_work(layers_->traits, layers_->config, rows_) > kShortStep) released.emplace();
      return run_single_step(layers_->config, call);
    }
    if (!lists_) call.lists = whole();
    Tape<Real> tape;
    tape.config = layers_->config;
    if (memory) borrow_tape(call, reinterpret_cast<Real*>(memory), tape);
    run_without_gil([&](const Interrupt& interrupt) {
      call.interrupt = interrupt;
      return run_forward(layers_->config, call, memory ? &tape : nullptr);
    });
  }

  template <class Real>
  void differentiate(int threads, const Backward& b) const {
    ForwardCall<Real> forward = call_of<Real>(threads, b.y);
    if (!lists_) forward.lists = whole();
    Tape<Real> tape;
    tape.config = layers_->config;
    borrow_tape(forward, data<Real>(b.tape), tape);
    BackwardCall<Real> call;
    call.dy = sequence<const Real>(b.dy);
    call.dhn = state<const Real>(b.dhn);
    call.dcn = state<const Real>(b.dcn);
    call.dx = sequence<Real>(b.dx);
    call.dh0 = state<Real>(b.dh0);
    call.dc0 = state<Real>(b.dc0);
    call.gradients = by_direction<WeightGradients<Real>, Real>(b.gradients);
    call.threads = threads;
    tape.call = std::move(forward);
    run_without_gil([&](const Interrupt& interrupt) {
      if (tape.call.lists->packed_rows() == 0) clear<Real>(b.gradients);  // else the kernels write all of them
      call.interrupt = interrupt;
      return run_backward(tape, call);
    });
  }

  template <class Real>
  static void clear(const std::vector<TensorView>& gradients) {
    for (const TensorView& g : gradients)
      if (g.data) std::fill_n(data<Real>(g), g.numel(), Real(0));
  }
};

class RawRecurrent {
 public:
  RawRecurrent(const std::string& cell, Index input_size, Index hidden_size, int layers, bool bidirectional, bool bias,
               const std::string& dtype, std::shared_ptr<const TensorReader> reader) {
    RawLayers made;
    RecurrentConfig& config = made.config;
    config.cell = find_cell(cell);
    if (config.cell < 0) throw py::value_error("cell must be the name of a registered cell, not '" + cell + "'");
    config.input_size = input_size;
    config.hidden_size = hidden_size;
    config.layers = layers;
    config.directions = bidirectional ? 2 : 1;
    made.traits = kernels<float>().cells[config.cell].traits;
    made.bits = dtype == "float32" ? 32 : 64;
    made.bias = bias;
    made.reader = std::move(reader);
    made.set_parameter_shapes();
    layers_ = std::make_shared<const RawLayers>(std::move(made));
  }

  Index tape_row() const { return tape_row_elements(layers_->config); }
  std::vector<std::vector<Index>> parameter_shapes() const { return layers_->parameter_shapes; }

  // A call on these tensors, or none where the engine cannot read them as they are: one is of another class, dtype,
  // device or shape, has other strides, or its storage has become too small for it.
  std::optional<RawCall> bind(const std::string& form, Index steps, Index rows, const Lists& lists, py::handle x,
                              py::handle h0, py::handle c0, const py::sequence& weights) const {
    std::optional<RawCall> call(std::in_place, layers_, form, steps, rows, lists);
    if (!call->read(x, h0, c0, weights)) call.reset();
    return call;
  }

 private:
  std::shared_ptr<const RawLayers> layers_;
};

}  // namespace

void register_raw(py::module_& module) {
  py::class_<RowLists, std::shared_ptr<RowLists>>(module, "RowLists", "Which rows of a batch run at which step.")
      .def_static("padded", &padded_lists)
      .def_static("packed", &packed_lists)
      .def_property_readonly("rows", &RowLists::rows);
  py::class_<TensorReader, std::shared_ptr<TensorReader>>(module, "TensorReader", "How to read torch's tensors.")
      .def(py::init<py::type, py::type, py::type, py::object>());
  py::class_<RawRecurrent>(module, "RawRecurrent", "Layers on torch's tensors.")
      .def(py::init<const std::string&, Index, Index, int, bool, bool, const std::string&,
                    std::shared_ptr<TensorReader>>())
      .def_property_readonly("tape_row", &RawRecurrent::tape_row)
      .def_property_readonly("parameter_shapes", &RawRecurrent::parameter_shapes)
      .def("bind", &RawRecurrent::bind);
  py::class_<RawCall>(module, "RawCall", "A call whose tensors have been read, to be run at once.")
      .def("forward", &RawCall::forward)
      .def("backward", &RawCall::backward);
}

}  // namespace fusedrnn
