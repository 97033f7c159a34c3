// Layers and cells: array -> view -> check -> allocate -> release the GIL -> call.
#include "cpu/layers/recurrent.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <variant>

#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "bindings/numpy/parameters.h"
#include "bindings/numpy/states.h"
#include "bindings/numpy/stepper.h"
#include "bindings/register.h"
#include "bindings/sentences.h"
#include "cpu/isa.h"
#include "cpu/layers/int8_net.h"
#include "cpu/layers/packed.h"
#include "cpu/layers/single_step.h"
#include "cpu/layers/step_cost.h"
#include "net/parameters.h"

namespace fusedrnn {
namespace {

// One forward call's arrays and extents. Unbatched arrays have no batch axis; a single step has no time axis.
struct Layout {
  bool batch_first = false, single_step = false, batched = true;
  Index steps = 1, rows = 1;

  int time_axis() const { return single_step ? -1 : batched && batch_first ? 1 : 0; }
  int row_axis() const { return !batched ? -1 : single_step || batch_first ? 0 : 1; }
  // Axes before the last one, in the order of this layout.
  template <class Axis>
  std::vector<Axis> outer(Axis time, Axis row) const {
    if (single_step) return batched ? std::vector<Axis>{row} : std::vector<Axis>{};
    if (!batched) return {time};
    return batch_first ? std::vector<Axis>{row, time} : std::vector<Axis>{time, row};
  }
  template <class Axis>
  std::vector<Axis> sequence(Axis time, Axis row, Axis last) const {
    std::vector<Axis> axes = outer(time, row);
    axes.push_back(last);
    return axes;
  }
  std::vector<Index> sequence_shape(Index width) const { return sequence<Index>(steps, rows, width); }
  // One number for each layer and direction, time and row.
  std::vector<Index> norms_shape(Index layers) const {
    std::vector<Index> shape = outer<Index>(steps, rows);
    shape.insert(shape.begin(), layers);
    return shape;
  }
  Index norms_time() const { return batch_first ? 1 : rows; }
  Index norms_row() const { return batch_first ? steps : 1; }
  std::vector<Index> state_shape(Index layers, Index hidden) const {
    std::vector<Index> shape;
    if (!single_step) shape.push_back(layers);
    if (batched) shape.push_back(rows);
    shape.push_back(hidden);
    return shape;
  }
};

Shape as_wanted(const std::vector<Index>& shape) { return Shape(shape.begin(), shape.end()); }

template <class Variant>
std::size_t bytes_of(const Variant& variant) {
  return std::visit(
      [](const auto& held) -> std::size_t {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>)
          return 0;
        else
          return held.bytes();
      },
      variant);
}

class Recurrent;

// The Python-visible tape: what the core keeps, and the arrays it refers to.
struct PyTape {
  std::shared_ptr<const Recurrent> owner;
  Layout layout;
  std::variant<std::monostate, Tape<float>, Tape<double>, Tape<Bfloat16>> tape;
  std::vector<py::object> kept;

  std::size_t bytes() const { return bytes_of(tape); }
};

// The Python-visible packed parameters of a layer, for its calls.
struct PyPacked {
  std::shared_ptr<const Recurrent> owner;
  std::variant<std::monostate, PackedNet<float>, PackedNet<double>, PackedNet<Bfloat16>, Int8Net> net;

  std::size_t bytes() const { return bytes_of(net); }
};

class Recurrent : public std::enable_shared_from_this<Recurrent> {
 public:
  Recurrent(const std::string& cell, Index input_size, Index hidden_size, int layers, bool bias, bool bidirectional,
            double dropout, std::uint64_t seed, const py::dtype& dtype, bool batch_first, bool single_step,
            bool reverse, double clip)
      : dtype_(dtype), type_(element_type(dtype)), batch_first_(batch_first), single_step_(single_step) {
    config_.input_size = input_size;
    config_.hidden_size = hidden_size;
    config_.layers = layers;
    config_.directions = bidirectional ? 2 : 1;
    config_.bias = bias;
    config_.reverse = reverse;
    config_.clip = clip;
    config_.dropout = dropout;
    config_.seed = seed;
    const std::vector<CellTraits> cells = registered_cells();
    config_.cell = find_cell(cells, cell);
    traits_ = cells[config_.cell];
    parameters_ = parameters_of(traits_, config_, !single_step);
    list_ = ParameterList(dtype_);
    for (const Parameter& parameter : parameters_) list_.add(parameter.name, parameter.shape);
  }

  py::list parameter_shapes() const { return list_.shapes(); }
  std::uint64_t calls() const { return calls_.load(); }
  void set_calls(std::uint64_t calls) { calls_.store(calls); }

  // parameters: the dict of them, or what `freeze` made of one.
  py::tuple infer(py::handle parameters, py::handle x, py::handle state, py::handle lengths, py::handle reset,
                  py::handle mask, py::handle out) {
    return with_type(
        type_, [&](auto item) { return run<decltype(item)>(parameters, x, state, lengths, reset, mask, out, false); });
  }
  // recompute: steps of a segment, or 0 to keep every step's gates.
  py::tuple forward(const py::dict& parameters, py::handle x, py::handle state, py::handle lengths, py::handle reset,
                    py::handle mask, Index recompute, py::handle out) {
    return with_type(type_, [&](auto item) {
      return run<decltype(item)>(parameters, x, state, lengths, reset, mask, out, true, recompute);
    });
  }
  // Last of what it gives: a tuple of the states' norms, or None unless `norms` is true.
  py::tuple backward(const PyTape& tape, py::handle dy, py::handle dstate, py::handle gradients, bool norms) {
    if (tape.owner.get() != this) throw py::value_error(sentence::foreign_tape());
    return with_type(type_,
                     [&](auto item) { return differentiate<decltype(item)>(tape, dy, dstate, gradients, norms); });
  }
  // state: what the stepper begins with, or None for zeros.
  std::unique_ptr<PyStepper> stream(const py::dict& mapping, Index batch, py::handle state, bool int8) const {
    const std::vector<py::array> weights = list_.arrays(mapping, "parameters");
    if (int8) require_int8(weights);
    auto stepper = with_type(type_, [&](auto item) {
      return std::make_unique<PyStepper>(dtype_, config_, traits_, weights_of<decltype(item)>(weights), batch, int8);
    });
    if (!state.is_none()) stepper->begin_with(state);
    return stepper;
  }
  // mapping: the parameters, or with `int8` also the bytes that `unfreeze` made of ones.
  std::unique_ptr<PyPacked> freeze(py::handle mapping, bool int8) const {
    auto packed = std::make_unique<PyPacked>();
    packed->owner = shared_from_this();
    if (int8 && py::isinstance<py::bytes>(mapping)) {
      restore(py::reinterpret_borrow<py::bytes>(mapping), *packed);
      return packed;
    }
    if (!PyDict_Check(mapping.ptr())) throw py::type_error("parameters must be a dict, not " + type_name(mapping));
    const std::vector<py::array> weights = list_.arrays(py::reinterpret_borrow<py::dict>(mapping), "parameters");
    if (int8) {
      require_int8(weights);
      const std::vector<Weights<float>> from = weights_of<float>(weights);
      const GilReleased released;
      packed->net.emplace<Int8Net>(config_, from);
      return packed;
    }
    with_type(type_, [&](auto item) { pack<decltype(item)>(weights, *packed); });
    return packed;
  }
  // Parameters, or bytes, that freeze to the same.
  py::object unfreeze(const PyPacked& packed) const {
    require_own(packed);
    if (const Int8Net* net = std::get_if<Int8Net>(&packed.net))
      return py::bytes(static_cast<const char*>(net->memory()), net->bytes());
    py::dict result;
    std::vector<py::array> arrays;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      arrays.push_back(new_array(dtype_, parameters_[i].shape));
      result[list_.key(i)] = arrays.back();
    }
    with_type(type_, [&](auto item) { unpack<decltype(item)>(packed, arrays); });
    return result;
  }
  void check_parameters(const py::dict& parameters) const {
    std::vector<py::array> arrays = list_.arrays(parameters, "parameters");
    for (std::size_t i = 0; i < arrays.size(); ++i) require_writable(arrays[i], list_.entry("parameters", i));
  }

 private:
  RecurrentConfig config_;
  CellTraits traits_;
  py::dtype dtype_;
  ElementType type_;
  bool batch_first_, single_step_;
  std::vector<Parameter> parameters_;
  ParameterList list_;  // the same, as a caller's dict has them
  std::atomic<std::uint64_t> calls_{0};

  // Of a state: c, which comes second, is of the accumulator's dtype.
  py::dtype state_dtype(int state) const { return state == 0 ? dtype_ : accumulator_of(dtype_); }

  template <class T>
  std::vector<Weights<T>> weights_of(const std::vector<py::array>& arrays) const {
    return by_direction<const T>(parameters_, [&](std::size_t i) { return data_of<T>(arrays[i]); });
  }
  template <class T>
  void pack(const std::vector<py::array>& arrays, PyPacked& packed) const {
    const std::vector<Weights<T>> weights = weights_of<T>(arrays);
    const int threads = num_threads();
    const GilReleased released;
    packed.net.template emplace<PackedNet<T>>(config_, weights, threads);
  }
  template <class T>
  void unpack(const PyPacked& packed, std::vector<py::array>& arrays) const {
    const auto to = by_direction<T>(parameters_, [&](std::size_t i) { return mutable_data_of<T>(arrays[i]); });
    std::get<PackedNet<T>>(packed.net).unpack(config_, to);
  }
  void restore(const py::bytes& kept, PyPacked& packed) const {
    const std::string_view bytes = kept;
    if (type_ != ElementType::float32 || bytes.size() != Int8Net::bytes_of(config_))
      throw py::value_error("parameters must be the bytes that unfreeze gave, not " + std::to_string(bytes.size()) +
                            " others");
    packed.net.emplace<Int8Net>(config_, bytes.data());
  }
  // What weights of 8 bits are made from.
  void require_int8(const std::vector<py::array>& arrays) const {
    if (type_ != ElementType::float32)
      throw py::type_error("weights must be None for a layer of another dtype than float32");
    for (std::size_t i = 0; i < arrays.size(); ++i)
      if (parameters_[i].name.rfind("weight", 0) == 0 && !all_finite(data_of<float>(arrays[i]), arrays[i].size()))
        throw py::value_error("weights must be None where " + list_.entry("parameters", i) + " is not finite");
  }
  void require_own(const PyPacked& packed) const {
    if (packed.owner.get() != this) throw py::value_error("parameters must have been frozen by this object");
  }

  // What a call reads its weights from: the caller's arrays, or packed ones.
  template <class T>
  void set_weights(py::handle parameters, std::vector<py::array>& arrays, ForwardCall<T>& call) const {
    if (PyDict_Check(parameters.ptr())) {
      arrays = list_.arrays(py::reinterpret_borrow<py::dict>(parameters), "parameters");
      call.weights = weights_of<T>(arrays);
      return;
    }
    if (!py::isinstance<PyPacked>(parameters))
      throw py::type_error("parameters must be a dict, not " + type_name(parameters));
    const auto& packed = py::cast<const PyPacked&>(parameters);
    require_own(packed);
    if (const Int8Net* net = std::get_if<Int8Net>(&packed.net))
      call.int8 = net;
    else
      std::get<PackedNet<T>>(packed.net).use_in(call);
  }

  template <class A>
  std::vector<WeightGradients<A>> gradients_of(std::vector<py::array>& arrays) const {
    return by_direction<A>(parameters_, [&](std::size_t i) { return mutable_data_of<A>(arrays[i]); });
  }
  // Arrays for sums of the accumulator's type, where the parameters are narrower; `written` as for new_gradient.
  std::vector<py::array> new_sums(bool written) const {
    std::vector<py::array> sums;
    for (const Parameter& parameter : parameters_)
      sums.push_back(new_gradient(accumulator_of(dtype_), parameter.shape, written));
    return sums;
  }

  Layout layout_of(const py::array& x) const {
    Layout layout;
    layout.batch_first = batch_first_;
    layout.single_step = single_step_;
    const int sequence_axes = single_step_ ? 1 : 2;
    layout.batched = x.ndim() != sequence_axes;
    if (layout.batched && x.ndim() != sequence_axes + 1) wrong_shape("x", wanted_x(), x);
    require_last_axis(x, config_.input_size);
    if (layout.time_axis() >= 0) layout.steps = x.shape(layout.time_axis());
    if (layout.row_axis() >= 0) layout.rows = x.shape(layout.row_axis());
    return layout;
  }
  std::string wanted_x() const {
    const Extent last = config_.input_size;
    if (single_step_) return describe({"B", last}) + " or " + describe({last});
    return (batch_first_ ? describe({"B", "T", last}) : describe({"T", "B", last})) + " or " + describe({"T", last});
  }
  void require_last_axis(const py::array& x, Index size) const {
    if (x.shape(static_cast<int>(x.ndim()) - 1) != size) wrong_shape("x", wanted_x(), x);
  }

  template <class T>
  Sequence<const T> sequence_of(const py::array& array, const Layout& layout) const {
    return {data_of<T>(array), layout.time_axis() < 0 ? 0 : stride_of(array, layout.time_axis()),
            layout.row_axis() < 0 ? 0 : stride_of(array, layout.row_axis())};
  }
  template <class T>
  Sequence<T> mutable_sequence_of(py::array& array, const Layout& layout) const {
    const Sequence<const T> view = sequence_of<T>(array, layout);
    return {mutable_data_of<T>(array), view.time, view.row};
  }
  StateArray<const void> state_of(const std::optional<py::array>& array, const Layout& layout) const {
    if (!array) return {};
    const int row_axis = single_step_ ? 0 : 1;
    return {array->data(), single_step_ ? 0 : stride_of(*array, 0), layout.batched ? stride_of(*array, row_axis) : 0};
  }
  StateArray<void> mutable_state_of(py::array& array, const Layout& layout) const {
    return {array.mutable_data(), layout.rows * config_.hidden_size, config_.hidden_size};
  }

  Index state_layers() const { return config_.layers * config_.directions; }

  // The arrays of a state or its gradient, none where it is None. Parts may be None in gradients, where they mean
  // zeros.
  std::vector<std::optional<py::array>> state_arrays(py::handle state, const std::string& name, const Layout& layout,
                                                     bool parts_may_be_none) const {
    std::vector<std::optional<py::array>> arrays(traits_.states);
    if (state.is_none()) return arrays;
    const auto parts = split_state(state, name, traits_);
    for (int i = 0; i < traits_.states; ++i)
      if (!(parts_may_be_none && parts[i].is_none())) arrays[i] = state_array(parts[i], name, i, layout);
    return arrays;
  }
  py::array state_array(py::handle part, const std::string& state, int index, const Layout& layout) const {
    const std::vector<Index> shape = layout.state_shape(state_layers(), config_.hidden_size);
    const py::dtype dtype = state_dtype(index);
    if (is_plain(part, dtype, shape)) return py::reinterpret_borrow<py::array>(part);
    const std::string name = state_name(state, traits_, index);
    const bool own = dtype.is(dtype_);  // else no other layer would take it
    py::array array = require_array(part, name, dtype, own ? Use::input_of_layer : Use::input);
    require_shape(array, name, as_wanted(shape));
    require_unit_stride(array, name);
    return array;
  }

  std::vector<std::int64_t> lengths_of(py::handle object, const Layout& layout) const {
    if (object.is_none()) return {};
    if (!layout.batched) throw py::value_error(sentence::unbatched_lengths());
    return fusedrnn::lengths_of(object, "lengths", layout.rows, layout.steps);
  }

  // A bool for every step of every row: reset or mask.
  std::optional<py::array> flags_array(py::handle object, const std::string& name, const Layout& layout) const {
    if (object.is_none()) return std::nullopt;
    py::array array = require_array(object, name, py::dtype::of<bool>());
    require_shape(array, name, as_wanted(layout.outer<Index>(layout.steps, layout.rows)));
    return array;
  }
  static Flags flags_of(const std::optional<py::array>& array, const Layout& layout) {
    if (!array) return {};
    return {static_cast<const unsigned char*>(array->data()), stride_of(*array, layout.time_axis()),
            layout.row_axis() >= 0 ? stride_of(*array, layout.row_axis()) : 0};
  }

  py::array output_of(py::handle out, const Layout& layout) const {
    const std::vector<Index> shape = layout.sequence_shape(config_.width());
    if (out.is_none()) return new_array(dtype_, shape);
    py::array array = require_array(out, "out", dtype_);
    require_shape(array, "out", as_wanted(shape));
    require_unit_stride(array, "out");
    require_writable(array, "out");
    return array;
  }

  void require_free_output(const py::array& out, const py::array& x, const std::vector<std::optional<py::array>>& state,
                           const std::vector<py::array>& weights) const {
    require_disjoint(out, "out", x, "x");
    for (const auto& half : state)
      if (half) require_disjoint(out, "out", *half, "state");
    for (std::size_t i = 0; i < weights.size(); ++i)
      require_disjoint(out, "out", weights[i], list_.entry("parameters", i));
  }

  std::shared_ptr<const RowLists> row_lists(const Layout& layout, py::handle lengths, py::handle reset,
                                            py::handle mask) const {
    const std::vector<std::int64_t> counted = lengths_of(lengths, layout);
    const std::optional<py::array> cuts = flags_array(reset, "reset", layout);
    const std::optional<py::array> kept = flags_array(mask, "mask", layout);
    return std::make_shared<const RowLists>(layout.steps, layout.rows, lengths.is_none() ? nullptr : counted.data(),
                                            flags_of(cuts, layout), flags_of(kept, layout));
  }

  std::vector<py::array> new_state(const Layout& layout) const {
    std::vector<py::array> arrays;
    for (int half = 0; half < traits_.states; ++half)
      arrays.push_back(new_array(state_dtype(half), layout.state_shape(state_layers(), config_.hidden_size)));
    return arrays;
  }

  template <class T>
  py::tuple run(py::handle parameters, py::handle x_object, py::handle state_object, py::handle lengths,
                py::handle reset, py::handle mask, py::handle out, bool training, Index recompute = 0) {
    ForwardCall<T> call;
    std::vector<py::array> weights;
    set_weights(parameters, weights, call);
    const py::array x = require_array(x_object, "x", dtype_, Use::input_of_layer);
    const Layout layout = layout_of(x);
    require_unit_stride(x, "x");
    const auto state = state_arrays(state_object, "state", layout, false);
    const bool whole = lengths.is_none() && reset.is_none() && mask.is_none();
    const bool single_step = !training && whole && layout.steps == 1 && !call.int8 &&
                             (call.packed ? packed_step_pays(layout.rows) : single_step_pays<T>(layout.rows));
    if (!single_step) call.lists = row_lists(layout, lengths, reset, mask);
    std::vector<py::array> final_state = new_state(layout);
    // A cell's output is its new h.
    py::array y = single_step_ ? final_state[0] : output_of(out, layout);
    if (!out.is_none()) require_free_output(y, x, state, weights);
    call.steps = layout.steps;
    call.rows = layout.rows;
    call.x = sequence_of<T>(x, layout);
    call.y = mutable_sequence_of<T>(y, layout);
    for (int i = 0; i < traits_.states; ++i) {
      call.initial[i] = state_of(state[i], layout);
      call.final[i] = mutable_state_of(final_state[i], layout);
    }
    call.threads = num_threads();
    if (single_step) {
      std::optional<GilReleased> released;
      if (step_work(traits_, config_, layout.rows) > kShortStep) released.emplace();
      run_single_step(config_, call);
      released.reset();
      return py::make_tuple(y, joined_state(final_state));
    }
    call.recompute = recompute;
    if (training) call.call = calls_.fetch_add(1);
    std::unique_ptr<PyTape> kept;
    Tape<T>* tape = nullptr;
    if (training) {
      kept = std::make_unique<PyTape>();
      kept->owner = shared_from_this();
      kept->layout = layout;
      kept->kept = {x, y};
      kept->kept.insert(kept->kept.end(), weights.begin(), weights.end());
      tape = &kept->tape.template emplace<Tape<T>>();
      tape->config = config_;
    }
    run_without_gil([&](const Interrupt& interrupt) {
      call.interrupt = interrupt;
      return run_forward(config_, call, tape);
    });
    if (!training) return py::make_tuple(y, joined_state(final_state));
    call.interrupt = {};
    call.initial = {};  // the tape has copies of its own
    call.final = {};
    tape->call = std::move(call);
    return py::make_tuple(y, joined_state(final_state), std::move(kept));
  }

  // Gradients are accumulated into: they must be nobody else's memory.
  void require_free_gradients(const std::vector<py::array>& gradients, const PyTape& tape,
                              const std::optional<py::array>& dy,
                              const std::vector<std::optional<py::array>>& dstate) const {
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      const std::string name = list_.entry("grads.parameters", i);
      for (const py::object& kept : tape.kept)
        require_disjoint(gradients[i], name, py::reinterpret_borrow<py::array>(kept), "what the tape refers to");
      if (dy) require_disjoint(gradients[i], name, *dy, "dy");
      for (const auto& half : dstate)
        if (half) require_disjoint(gradients[i], name, *half, "dstate");
      for (std::size_t j = 0; j < i; ++j)
        require_disjoint(gradients[i], name, gradients[j], list_.entry("grads.parameters", j));
    }
  }

  template <class T>
  py::tuple differentiate(const PyTape& kept, py::handle dy_object, py::handle dstate_object, py::handle given,
                          bool measure) {
    const Layout& layout = kept.layout;
    std::optional<py::array> dy;
    if (!dy_object.is_none()) {
      dy = require_array(dy_object, "dy", dtype_, Use::input_of_layer);
      require_shape(*dy, "dy", as_wanted(layout.sequence_shape(config_.width())));
      require_unit_stride(*dy, "dy");
    }
    const auto dstate = state_arrays(dstate_object, "dstate", layout, true);
    const Tape<T>& tape = std::get<Tape<T>>(kept.tape);
    py::dict result;
    std::vector<py::array> gradients = list_.gradients(given, tape.call.lists->packed_rows() > 0, result);
    if (!given.is_none()) require_free_gradients(gradients, kept, dy, dstate);
    py::array dx = new_array(dtype_, layout.sequence_shape(config_.input_size));
    std::vector<py::array> initial = new_state(layout);
    BackwardCall<T> call;
    if (dy) call.dy = sequence_of<T>(*dy, layout);
    call.dx = mutable_sequence_of<T>(dx, layout);
    for (int i = 0; i < traits_.states; ++i) {
      call.dfinal[i] = state_of(dstate[i], layout);
      call.dinitial[i] = mutable_state_of(initial[i], layout);
    }
    constexpr bool narrow = !std::is_same_v<T, Accumulator<T>>;
    std::vector<py::array> sums = narrow ? new_sums(tape.call.lists->packed_rows() > 0) : gradients;
    call.gradients = gradients_of<Accumulator<T>>(sums);
    call.accumulate = !given.is_none() && !narrow;
    std::vector<py::array> norms;
    for (int i = 0; measure && i < traits_.states; ++i) {
      norms.push_back(new_array(dtype_, layout.norms_shape(state_layers())));
      call.norms[i] = {mutable_data_of<T>(norms[i]), layout.norms_time(), layout.norms_row()};
    }
    call.threads = num_threads();
    run_without_gil([&](const Interrupt& interrupt) {
      call.interrupt = interrupt;
      return run_backward(tape, call);
    });
    for (std::size_t i = 0; narrow && i < sums.size(); ++i) round_into(sums[i], gradients[i], !given.is_none());
    const py::object measured = measure ? py::object(py::tuple(py::cast(norms))) : py::none();
    return py::make_tuple(dx, joined_state(initial), result, measured);
  }
};

// __new__ of packed parameters: pybind11 would make an object around uninitialised memory.
[[noreturn]] void only_from_freeze(const py::args&, const py::kwargs&) {
  throw py::type_error("packed parameters are made by freeze only");
}

}  // namespace

void register_recurrent(py::module_& module) {
  py::class_<PyTape>(module, "Tape",
                     "What backpropagation needs of one forward call; it refers to x, y and the parameters.")
      .def_property_readonly("nbytes", &PyTape::bytes, "Bytes it holds beyond the arrays it refers to.")
      .def_static("__new__", &only_from_forward);
  py::class_<PyPacked>(module, "Packed", "A layer's parameters as `freeze` packed them.")
      .def_property_readonly("nbytes", &PyPacked::bytes, "Bytes of the packed parameters.")
      .def_static("__new__", &only_from_freeze);
  py::class_<Recurrent, std::shared_ptr<Recurrent>>(module, "Recurrent")
      .def(py::init<const std::string&, Index, Index, int, bool, bool, double, std::uint64_t, const py::dtype&, bool,
                    bool, bool, double>(),
           py::kw_only(), py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"),
           py::arg("bias"), py::arg("bidirectional"), py::arg("dropout"), py::arg("seed"), py::arg("dtype"),
           py::arg("batch_first"), py::arg("single_step"), py::arg("reverse") = false, py::arg("clip") = 0.0)
      .def_property_readonly("parameter_shapes", &Recurrent::parameter_shapes)
      .def_property("calls", &Recurrent::calls, &Recurrent::set_calls)
      .def("infer", &Recurrent::infer)
      .def("forward", &Recurrent::forward)
      .def("backward", &Recurrent::backward)
      .def("stream", &Recurrent::stream, py::arg("parameters"), py::arg("batch"), py::arg("state"),
           py::arg("int8") = false)
      .def("freeze", &Recurrent::freeze, py::arg("parameters"), py::arg("int8") = false)
      .def("unfreeze", &Recurrent::unfreeze)
      .def("check_parameters", &Recurrent::check_parameters);
}

}  // namespace fusedrnn
