// Layers on memory that the caller has allocated and checked: for adapters to frameworks with tensors of their own,
// where a call must cost microseconds. Nothing is checked here but what would otherwise be read as sizes.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

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
using RawSequence = std::tuple<Address, Index, Index>;   // address, strides of time and row in elements
using RawState = std::tuple<Address, Address>;           // h and c, each contiguous (layers * directions, B, H)
using Lists = std::optional<std::shared_ptr<RowLists>>;  // none: every row has all steps
constexpr std::size_t kParameters = 5;                   // of a direction: weight_ih, weight_hh, biases, peephole

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

class RawRecurrent {
 public:
  RawRecurrent(const std::string& cell, Index input_size, Index hidden_size, int layers, bool bidirectional,
               const std::string& dtype)
      : single_(dtype == "float32") {
    config_.cell = find_cell(cell);
    if (config_.cell < 0) throw py::value_error("cell must be the name of a registered cell, not '" + cell + "'");
    config_.input_size = input_size;
    config_.hidden_size = hidden_size;
    config_.layers = layers;
    config_.directions = bidirectional ? 2 : 1;
  }

  Index tape_row() const { return tape_row_elements(config_); }

  void forward(int threads, Index steps, Index rows, const Lists& lists, const RawSequence& x, const RawSequence& y,
               const RawState& initial, const RawState& final, const std::vector<Address>& weights,
               Address tape) const {
    single_ ? run<float>(threads, steps, rows, lists, x, y, initial, final, weights, tape)
            : run<double>(threads, steps, rows, lists, x, y, initial, final, weights, tape);
  }
  void backward(int threads, Index steps, Index rows, const Lists& lists, const RawSequence& x, const RawSequence& y,
                const RawState& initial, const std::vector<Address>& weights, Address tape, const RawSequence& dy,
                const RawState& dfinal, const RawSequence& dx, const RawState& dinitial,
                const std::vector<Address>& gradients) const {
    single_ ? differentiate<float>(threads, steps, rows, lists, x, y, initial, weights, tape, dy, dfinal, dx, dinitial,
                                   gradients)
            : differentiate<double>(threads, steps, rows, lists, x, y, initial, weights, tape, dy, dfinal, dx, dinitial,
                                    gradients);
  }

 private:
  RecurrentConfig config_;
  bool single_;

  template <class Real>
  StateArray<Real> state(Address address, Index rows) const {
    return {reinterpret_cast<Real*>(address), rows * config_.hidden_size, config_.hidden_size};
  }
  template <class Real>
  static Sequence<Real> sequence(const RawSequence& raw, const RowLists* lists) {
    return {reinterpret_cast<Real*>(std::get<0>(raw)), std::get<1>(raw), std::get<2>(raw),
            lists ? lists->starts() : nullptr};
  }
  // Each direction's five addresses as a Target of pointers.
  template <class Target, class Real>
  std::vector<Target> by_direction(const std::vector<Address>& addresses) const {
    std::vector<Target> result(static_cast<std::size_t>(config_.layers * config_.directions));
    if (addresses.size() != result.size() * kParameters)
      throw py::value_error("five addresses are needed for each direction of each layer");
    const Address* a = addresses.data();
    for (Target& target : result) {
      const auto at = [a](int i) { return reinterpret_cast<Real*>(a[i]); };
      target = {at(0), at(1), at(2), at(3), at(4)};
      a += kParameters;
    }
    return result;
  }

  template <class Real>
  ForwardCall<Real> call_of(int threads, Index steps, Index rows, const Lists& lists, const RawSequence& x,
                            const RawSequence& y, const RawState& initial, const std::vector<Address>& weights) const {
    const RowLists* given = lists ? lists->get() : nullptr;
    ForwardCall<Real> call;
    call.steps = steps;
    call.rows = rows;
    call.weights = by_direction<Weights<Real>, const Real>(weights);
    call.x = sequence<const Real>(x, given);
    call.y = sequence<Real>(y, given);
    call.h0 = state<const Real>(std::get<0>(initial), rows);
    call.c0 = state<const Real>(std::get<1>(initial), rows);
    call.threads = threads;
    if (lists) call.lists = *lists;
    return call;
  }
  static std::shared_ptr<const RowLists> whole(Index steps, Index rows) {
    return std::make_shared<const RowLists>(steps, rows, nullptr, nullptr, 0, 0);
  }

  template <class Real>
  void run(int threads, Index steps, Index rows, const Lists& lists, const RawSequence& x, const RawSequence& y,
           const RawState& initial, const RawState& final, const std::vector<Address>& weights, Address memory) const {
    ForwardCall<Real> call = call_of<Real>(threads, steps, rows, lists, x, y, initial, weights);
    call.hn = state<Real>(std::get<0>(final), rows);
    call.cn = state<Real>(std::get<1>(final), rows);
    if (!memory && !lists && steps == 1 && single_step_pays(rows)) {
      const CellTraits& traits = kernels<Real>().cells[config_.cell].traits;
      std::optional<py::gil_scoped_release> released;
      if (step_work(traits, config_, rows) > kShortStep) released.emplace();
      return run_single_step(config_, call);
    }
    if (!lists) call.lists = whole(steps, rows);
    Tape<Real> tape;
    tape.config = config_;
    if (memory) borrow_tape(call, reinterpret_cast<Real*>(memory), tape);
    run_without_gil([&](const Interrupt& interrupt) {
      call.interrupt = interrupt;
      return run_forward(config_, call, memory ? &tape : nullptr);
    });
  }

  template <class Real>
  void differentiate(int threads, Index steps, Index rows, const Lists& lists, const RawSequence& x,
                     const RawSequence& y, const RawState& initial, const std::vector<Address>& weights, Address memory,
                     const RawSequence& dy, const RawState& dfinal, const RawSequence& dx, const RawState& dinitial,
                     const std::vector<Address>& gradients) const {
    ForwardCall<Real> forward = call_of<Real>(threads, steps, rows, lists, x, y, initial, weights);
    if (!lists) forward.lists = whole(steps, rows);
    Tape<Real> tape;
    tape.config = config_;
    borrow_tape(forward, reinterpret_cast<Real*>(memory), tape);
    const RowLists* given = lists ? lists->get() : nullptr;
    BackwardCall<Real> call;
    call.dy = sequence<const Real>(dy, given);
    call.dhn = state<const Real>(std::get<0>(dfinal), rows);
    call.dcn = state<const Real>(std::get<1>(dfinal), rows);
    call.dx = sequence<Real>(dx, given);
    call.dh0 = state<Real>(std::get<0>(dinitial), rows);
    call.dc0 = state<Real>(std::get<1>(dinitial), rows);
    call.gradients = by_direction<WeightGradients<Real>, Real>(gradients);
    call.threads = threads;
    tape.call = std::move(forward);
    run_without_gil([&](const Interrupt& interrupt) {
      call.interrupt = interrupt;
      return run_backward(tape, call);
    });
  }
};

}  // namespace

void register_raw(py::module_& module) {
  py::class_<RowLists, std::shared_ptr<RowLists>>(module, "RowLists", "Which rows of a batch run at which step.")
      .def_static("padded", &padded_lists)
      .def_static("packed", &packed_lists)
      .def_property_readonly("rows", &RowLists::rows);
  py::class_<RawRecurrent>(module, "RawRecurrent", "Layers on memory that the caller has allocated and checked.")
      .def(py::init<const std::string&, Index, Index, int, bool, const std::string&>())
      .def_property_readonly("tape_row", &RawRecurrent::tape_row)
      .def("forward", &RawRecurrent::forward)
      .def("backward", &RawRecurrent::backward);
}

}  // namespace fusedrnn
