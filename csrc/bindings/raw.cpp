// Layers on memory that the caller has allocated and checked: for adapters to frameworks with tensors of their own,
// where a call must cost microseconds. Nothing is checked here but what would otherwise be read as sizes.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bindings/interrupt.h"
#include "bindings/register.h"
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

// A sequence's address and strides in elements.
struct RawSequence {
  Address data;
  Index time, row;
};

class RawRecurrent {
 public:
  RawRecurrent(const std::string& cell, Index input_size, Index hidden_size, int layers, bool bidirectional, bool bias,
               const std::string& dtype)
      : single_(dtype == "float32"), bias_(bias) {
    config_.cell = find_cell(cell);
    if (config_.cell < 0) throw py::value_error("cell must be the name of a registered cell, not '" + cell + "'");
    config_.input_size = input_size;
    config_.hidden_size = hidden_size;
    config_.layers = layers;
    config_.directions = bidirectional ? 2 : 1;
    traits_ = kernels<float>().cells[config_.cell].traits;
  }

  Index tape_row() const { return tape_row_elements(config_); }

  // In torch's order, without names.
  std::vector<std::vector<Index>> parameter_shapes() const {
    std::vector<std::vector<Index>> shapes;
    const Index hidden = config_.hidden_size, gates = traits_.gates * hidden;
    for (int i = 0; i < config_.layers * config_.directions; ++i) {
      shapes.push_back({gates, config_.input_of(i / config_.directions)});
      shapes.push_back({gates, hidden});
      if (bias_) shapes.insert(shapes.end(), 2, {gates});
      if (traits_.peepholes) shapes.push_back({traits_.peepholes, hidden});
    }
    return shapes;
  }

  // Addresses of sequences come with their strides of time and row. States are contiguous (layers * directions, B, H).
  void forward(int threads, Index steps, Index rows, const Lists& lists, Address x, Index x_time, Index x_row,
               Address y, Index y_time, Index y_row, Address h0, Address c0, Address hn, Address cn,
               const py::list& weights, Address tape) const {
    const Forward f = {threads, steps, rows, lists, {x, x_time, x_row}, {y, y_time, y_row}, h0, c0};
    single_ ? run<float>(f, weights, hn, cn, tape) : run<double>(f, weights, hn, cn, tape);
  }
  // Gradients of parameters are set, not added to.
  void backward(int threads, Index steps, Index rows, const Lists& lists, Address x, Index x_time, Index x_row,
                Address y, Index y_time, Index y_row, Address h0, Address c0, const py::list& weights, Address tape,
                Address dy, Index dy_time, Index dy_row, Address dhn, Address dcn, Address dx, Index dx_time,
                Index dx_row, Address dh0, Address dc0, const py::list& gradients) const {
    const Forward f = {threads, steps, rows, lists, {x, x_time, x_row}, {y, y_time, y_row}, h0, c0};
    const Backward b = {{dy, dy_time, dy_row}, dhn, dcn, {dx, dx_time, dx_row}, dh0, dc0};
    single_ ? differentiate<float>(f, weights, tape, b, gradients)
            : differentiate<double>(f, weights, tape, b, gradients);
  }

 private:
  struct Forward {
    int threads;
    Index steps, rows;
    const Lists& lists;
    RawSequence x, y;
    Address h0, c0;
  };
  struct Backward {
    RawSequence dy;
    Address dhn, dcn;
    RawSequence dx;
    Address dh0, dc0;
  };

  RecurrentConfig config_;
  CellTraits traits_;
  bool single_, bias_;

  template <class Real>
  StateArray<Real> state(Address address, Index rows) const {
    return {reinterpret_cast<Real*>(address), rows * config_.hidden_size, config_.hidden_size};
  }
  template <class Real>
  static Sequence<Real> sequence(const RawSequence& raw, const RowLists* lists) {
    return {reinterpret_cast<Real*>(raw.data), raw.time, raw.row, lists ? lists->starts() : nullptr};
  }

  // A list of addresses, in torch's order of parameters, as one Target of pointers for each direction.
  template <class Target, class Real>
  std::vector<Target> by_direction(const py::list& addresses) const {
    std::vector<Target> result(static_cast<std::size_t>(config_.layers * config_.directions));
    const bool peephole = traits_.peepholes > 0;
    const std::size_t each = 2 + (bias_ ? 2 : 0) + (peephole ? 1 : 0);
    if (addresses.size() != result.size() * each) throw py::value_error("addresses must be those of all parameters");
    std::size_t next = 0;
    const auto take = [&](bool there) -> Real* {
      if (!there) return nullptr;
      return reinterpret_cast<Real*>(PyLong_AsSize_t(PyList_GET_ITEM(addresses.ptr(), static_cast<Index>(next++))));
    };
    for (Target& target : result) target = {take(true), take(true), take(bias_), take(bias_), take(peephole)};
    if (PyErr_Occurred()) throw py::error_already_set();
    return result;
  }

  template <class Real>
  ForwardCall<Real> call_of(const Forward& f, const py::list& weights) const {
    const RowLists* given = f.lists ? f.lists->get() : nullptr;
    ForwardCall<Real> call;
    call.steps = f.steps;
    call.rows = f.rows;
    call.weights = by_direction<Weights<Real>, const Real>(weights);
    for (const Weights<Real>& w : call.weights)
      if (!w.weight_ih || !w.weight_hh) throw py::value_error("weights must have memory");
    if (!f.x.data && f.steps * f.rows > 0) throw py::value_error("x must have memory");
    call.x = sequence<const Real>(f.x, given);
    call.y = sequence<Real>(f.y, given);
    call.h0 = state<const Real>(f.h0, f.rows);
    call.c0 = state<const Real>(f.c0, f.rows);
    call.threads = f.threads;
    if (f.lists) call.lists = *f.lists;
    return call;
  }
  static std::shared_ptr<const RowLists> whole(const Forward& f) {
    return std::make_shared<const RowLists>(f.steps, f.rows, nullptr, nullptr, 0, 0);
  }

  template <class Real>
  void run(const Forward& f, const py::list& weights, Address hn, Address cn, Address memory) const {
    ForwardCall<Real> call = call_of<Real>(f, weights);
    call.hn = state<Real>(hn, f.rows);
    call.cn = state<Real>(cn, f.rows);
    if (!memory && !f.lists && f.steps == 1 && single_step_pays(f.rows)) {
      std::optional<py::gil_scoped_release> released;
      if (step_work(traits_, config_, f.rows) > kShortStep) released.emplace();
      return run_single_step(config_, call);
    }
    if (!f.lists) call.lists = whole(f);
    Tape<Real> tape;
    tape.config = config_;
    if (memory) borrow_tape(call, reinterpret_cast<Real*>(memory), tape);
    run_without_gil([&](const Interrupt& interrupt) {
      call.interrupt = interrupt;
      return run_forward(config_, call, memory ? &tape : nullptr);
    });
  }

  template <class Real>
  void differentiate(const Forward& f, const py::list& weights, Address memory, const Backward& b,
                     const py::list& gradients) const {
    ForwardCall<Real> forward = call_of<Real>(f, weights);
    if (!f.lists) forward.lists = whole(f);
    Tape<Real> tape;
    tape.config = config_;
    borrow_tape(forward, reinterpret_cast<Real*>(memory), tape);
    const RowLists* given = f.lists ? f.lists->get() : nullptr;
    BackwardCall<Real> call;
    call.dy = sequence<const Real>(b.dy, given);
    call.dhn = state<const Real>(b.dhn, f.rows);
    call.dcn = state<const Real>(b.dcn, f.rows);
    call.dx = sequence<Real>(b.dx, given);
    call.dh0 = state<Real>(b.dh0, f.rows);
    call.dc0 = state<Real>(b.dc0, f.rows);
    call.gradients = by_direction<WeightGradients<Real>, Real>(gradients);
    call.threads = f.threads;
    tape.call = std::move(forward);
    run_without_gil([&](const Interrupt& interrupt) {
      if (tape.call.lists->packed_rows() == 0) clear(call.gradients);  // else the kernels write all of them
      call.interrupt = interrupt;
      return run_backward(tape, call);
    });
  }

  template <class Real>
  void clear(const std::vector<WeightGradients<Real>>& gradients) const {
    const Index rows = traits_.gates * config_.hidden_size;
    const auto zero = [](Real* data, Index count) {
      if (data) std::fill_n(data, count, Real(0));
    };
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      const WeightGradients<Real>& g = gradients[i];
      zero(g.weight_ih, rows * config_.input_of(static_cast<int>(i) / config_.directions));
      zero(g.weight_hh, rows * config_.hidden_size);
      zero(g.bias_ih, rows);
      zero(g.bias_hh, rows);
      zero(g.peephole, traits_.peepholes * config_.hidden_size);
    }
  }
};

}  // namespace

void register_raw(py::module_& module) {
  py::class_<RowLists, std::shared_ptr<RowLists>>(module, "RowLists", "Which rows of a batch run at which step.")
      .def_static("padded", &padded_lists)
      .def_static("packed", &packed_lists)
      .def_property_readonly("rows", &RowLists::rows);
  py::class_<RawRecurrent>(module, "RawRecurrent", "Layers on memory that the caller has allocated and checked.")
      .def(py::init<const std::string&, Index, Index, int, bool, bool, const std::string&>())
      .def_property_readonly("tape_row", &RawRecurrent::tape_row)
      .def_property_readonly("parameter_shapes", &RawRecurrent::parameter_shapes)
      .def("forward", &RawRecurrent::forward)
      .def("backward", &RawRecurrent::backward);
}

}  // namespace fusedrnn
