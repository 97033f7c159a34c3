// Attention decoders: array -> view -> check -> allocate -> release the GIL -> call.
#include "cpu/layers/attention_decoder.h"

#include <pybind11/stl.h>

#include <atomic>
#include <optional>
#include <variant>

#include "bindings/interrupt.h"
#include "bindings/numpy/parameters.h"
#include "bindings/numpy/states.h"
#include "bindings/register.h"
#include "bindings/sentences.h"
#include "net/parameters.h"

namespace fusedrnn {
namespace {

Shape as_wanted(const std::vector<Index>& shape) { return Shape(shape.begin(), shape.end()); }

class Decoder;

// The extents of a call.
struct DecoderShape {
  bool batch_first = false;
  Index steps = 0, rows = 0, locations = 0;

  template <class Axis>
  std::vector<Axis> outer(Axis time, Axis row) const {
    return batch_first ? std::vector<Axis>{row, time} : std::vector<Axis>{time, row};
  }
  // Of an array with so many values for each step and row, and for each location and row.
  std::vector<Index> by_step(Index width) const {
    std::vector<Index> shape = outer(steps, rows);
    shape.push_back(width);
    return shape;
  }
  std::vector<Index> by_location(Index width) const {
    std::vector<Index> shape = outer(locations, rows);
    shape.push_back(width);
    return shape;
  }
  std::vector<Index> flat() const { return outer(steps, rows); }
  template <class Item>
  Sequence<Item> sequence(Item* data, const py::array& array) const {
    return {data, stride_of(array, batch_first ? 1 : 0), stride_of(array, batch_first ? 0 : 1)};
  }
  template <class Real>
  Sequence<const Real> read(const py::array& array) const {
    return sequence(data_of<Real>(array), array);
  }
  template <class Real>
  Sequence<Real> write(py::array& array) const {
    return sequence(mutable_data_of<Real>(array), array);
  }
};

struct PyDecoderTape {
  std::shared_ptr<const Decoder> owner;
  DecoderShape shape;
  std::variant<std::monostate, DecoderTape<float>, DecoderTape<double>> tape;
  std::vector<py::object> kept;                        // arrays that it refers to
  py::object attention, locations, log_prob, entropy;  // arrays, or None

  std::size_t bytes() const {
    std::size_t bytes = 0;
    if (const auto* f32 = std::get_if<DecoderTape<float>>(&tape)) bytes = f32->bytes();
    if (const auto* f64 = std::get_if<DecoderTape<double>>(&tape)) bytes = f64->bytes();
    for (const py::object& part : {attention, locations, log_prob, entropy})
      if (!part.is_none()) bytes += static_cast<std::size_t>(py::reinterpret_borrow<py::array>(part).nbytes());
    return bytes;
  }
};

// A tape's array, which nobody may write.
template <class Array>
py::object kept_array(Array array) {
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

class PyDecoderStream {
 public:
  template <class Real>
  PyDecoderStream(const DecoderConfig& config, const CellTraits& traits, const py::dtype& dtype,
                  std::unique_ptr<DecoderStream<Real>> stream)
      : config_(config), traits_(traits), dtype_(dtype), stream_(std::move(stream)) {
    visit([&](auto& one) { attention_ = new_gradient(dtype_, {one.rows(), one.locations()}, false); });
  }

  py::tuple step(py::handle x_object) {
    const Busy busy(busy_);
    py::array x = require_array(x_object, "x_t", dtype_, Use::input_of_layer);
    const Index rows = count_rows();
    require_shape(x, "x_t", {rows, config_.x_size()});
    require_unit_stride(x, "x_t");
    py::array h = new_array(dtype_, {rows, config_.net.hidden_size});
    py::array context = new_array(dtype_, {rows, config_.features});
    visit([&](auto& stream) {
      using Real = typename std::decay_t<decltype(stream)>::real;
      py::array attention = new_array(dtype_, {rows, stream.locations()});
      const StateRows<const Real> from = {data_of<Real>(x), stride_of(x, 0)};
      Real *const to = mutable_data_of<Real>(h), *const read = mutable_data_of<Real>(context),
                  *const shares = mutable_data_of<Real>(attention);
      run_without_gil(
          [&](const Interrupt& interrupt) { return stream.step(from, to, read, shares, num_threads(), interrupt); });
      attention_ = attention;
    });
    return py::make_tuple(h, context);
  }
  py::object attention() const { return attention_.attr("copy")(); }
  py::object state() {
    const Busy busy(busy_);
    std::vector<py::array> arrays;
    for (int i = 0; i < traits_.states; ++i) {
      arrays.push_back(new_array(dtype_, {1, count_rows(), config_.net.hidden_size}));
      visit([&](auto& stream) {
        using Real = typename std::decay_t<decltype(stream)>::real;
        stream.read_state(i, mutable_data_of<Real>(arrays.back()));
      });
    }
    return joined_state(arrays);
  }
  void set_state(py::handle state) {
    const Busy busy(busy_);
    const auto parts = split_state(state, "state", traits_);
    std::vector<py::array> arrays;
    for (int i = 0; i < traits_.states; ++i) {
      const std::string name = state_name("state", traits_, i);
      arrays.push_back(require_array(parts[i], name, dtype_, Use::input_of_layer));
      require_shape(arrays.back(), name, {1, count_rows(), config_.net.hidden_size});
      require_unit_stride(arrays.back(), name);
    }
    for (int i = 0; i < traits_.states; ++i)
      visit([&](auto& stream) {
        using Real = typename std::decay_t<decltype(stream)>::real;
        stream.write_state(i, {data_of<Real>(arrays[i]), stride_of(arrays[i], 1)});
      });
  }
  void select(const std::vector<Index>& rows) {
    const Busy busy(busy_);
    for (const Index row : rows)
      if (row < 0 || row >= count_rows())
        throw py::value_error("rows must lie in [0, " + std::to_string(count_rows()) + "), not " + std::to_string(row));
    visit([&](auto& stream) { stream.select(rows); });
    const py::array_t<std::int64_t> index(static_cast<Index>(rows.size()), rows.data());
    attention_ = attention_.attr("take")(index, py::arg("axis") = 0);
  }

 private:
  // One call at a time: steps let other threads run.
  struct Busy {
    bool& flag;
    explicit Busy(bool& busy) : flag(busy) {
      if (busy) {
        PyErr_SetString(PyExc_RuntimeError, "the stepper is at work in another thread");
        throw py::error_already_set();
      }
      busy = true;
    }
    ~Busy() { flag = false; }
  };

  DecoderConfig config_;
  CellTraits traits_;
  py::dtype dtype_;
  std::variant<std::unique_ptr<DecoderStream<float>>, std::unique_ptr<DecoderStream<double>>> stream_;
  py::array attention_;  // (N, S): of the last step
  bool busy_ = false;

  template <class Work>
  void visit(const Work& work) {
    std::visit([&](auto& stream) { work(*stream); }, stream_);
  }
  Index count_rows() {
    Index rows = 0;
    visit([&](auto& stream) { rows = stream.rows(); });
    return rows;
  }
};

class Decoder : public std::enable_shared_from_this<Decoder> {
 public:
  Decoder(const std::string& cell, Index input_size, Index hidden_size, Index memory_size, Index attention_size,
          bool hard, bool bias, std::uint64_t seed, const std::string& dtype, bool batch_first, double clip)
      : dtype_(dtype), is_float32_(dtype == "float32"), batch_first_(batch_first) {
    const std::vector<CellTraits> cells = registered_cells();
    config_.features = memory_size;
    config_.size = attention_size;
    config_.hard = hard;
    config_.net.cell = find_cell(cells, cell);
    config_.net.input_size = input_size + memory_size;
    config_.net.hidden_size = hidden_size;
    config_.net.bias = bias;
    config_.net.seed = seed;
    config_.net.clip = clip;
    traits_ = cells[config_.net.cell];
    parameters_ = parameters_of(traits_, config_.net);
    list_ = ParameterList(dtype_);
    for (const Parameter& parameter : parameters_) list_.add(parameter.name, parameter.shape);
    list_.add("weight_query", {attention_size, hidden_size});
    list_.add("weight_memory", {attention_size, memory_size});
    list_.add("bias_attention", {attention_size});
    list_.add("weight_score", {attention_size});
  }

  py::list parameter_shapes() const { return list_.shapes(); }
  std::uint64_t calls() const { return calls_.load(); }
  void set_calls(std::uint64_t calls) { calls_.store(calls); }
  void check_parameters(const py::dict& parameters) const {
    std::vector<py::array> arrays = list_.arrays(parameters, "parameters");
    for (std::size_t i = 0; i < arrays.size(); ++i) require_writable(arrays[i], list_.entry("parameters", i));
  }

  // (y, context, state), in training with a tape; hard attention draws its locations or takes the most probable ones.
  py::tuple run(const py::dict& parameters, py::handle x, py::handle memory, py::handle memory_lengths,
                py::handle state, py::handle lengths, bool training, bool draw) {
    return is_float32_ ? run_as<float>(parameters, x, memory, memory_lengths, state, lengths, training, draw)
                       : run_as<double>(parameters, x, memory, memory_lengths, state, lengths, training, draw);
  }
  // (dx, dmemory, dstate, gradients of the parameters)
  py::tuple backward(const PyDecoderTape& tape, py::handle dy, py::handle dcontext, py::handle dstate,
                     py::handle dlog_prob, py::handle dentropy, py::handle gradients) {
    if (tape.owner.get() != this) throw py::value_error(sentence::foreign_tape());
    return is_float32_ ? backward_as<float>(tape, dy, dcontext, dstate, dlog_prob, dentropy, gradients)
                       : backward_as<double>(tape, dy, dcontext, dstate, dlog_prob, dentropy, gradients);
  }
  std::unique_ptr<PyDecoderStream> stream(const py::dict& parameters, py::handle memory,
                                          py::handle memory_lengths) const {
    return is_float32_ ? stream_as<float>(parameters, memory, memory_lengths)
                       : stream_as<double>(parameters, memory, memory_lengths);
  }

 private:
  DecoderConfig config_;
  CellTraits traits_;
  py::dtype dtype_;
  bool is_float32_, batch_first_;
  std::vector<Parameter> parameters_;  // of the cell
  ParameterList list_;                 // those, and after them attention's
  std::atomic<std::uint64_t> calls_{0};

  template <class Item, class Arrays, class DataOf>
  AttentionArrays<Item> attention_arrays(Arrays& arrays, const DataOf& data) const {
    const std::size_t first = parameters_.size();
    return {data(arrays[first]), data(arrays[first + 1]), data(arrays[first + 2]), data(arrays[first + 3])};
  }

  py::array memory_array(py::handle object, DecoderShape& shape) const {
    const py::array memory = require_array(object, "memory", dtype_, Use::input_of_layer);
    const Extent features = config_.features;
    if (shape.rows < 0)
      require_shape(memory, "memory", batch_first_ ? Shape{"B", "S", features} : Shape{"S", "B", features});
    else
      require_shape(memory, "memory",
                    batch_first_ ? Shape{shape.rows, "S", features} : Shape{"S", shape.rows, features});
    require_unit_stride(memory, "memory");
    shape.locations = memory.shape(batch_first_ ? 1 : 0);
    shape.rows = memory.shape(batch_first_ ? 0 : 1);
    return memory;
  }
  template <class Real>
  AttentionSizes<Real> sizes_of(const py::array& memory, py::handle lengths, const DecoderShape& shape) const {
    AttentionSizes<Real> sizes;
    sizes.query = config_.net.hidden_size;
    sizes.features = config_.features;
    sizes.size = config_.size;
    sizes.locations = shape.locations;
    sizes.rows = shape.rows;
    sizes.memory = shape.read<Real>(memory);
    const std::vector<std::int64_t> counted = lengths_of(lengths, "memory_lengths", shape.rows, shape.locations);
    sizes.count(lengths.is_none() ? nullptr : counted.data());
    return sizes;
  }

  std::vector<std::optional<py::array>> state_arrays(py::handle state, const std::string& name, Index rows,
                                                     bool parts_may_be_none) const {
    std::vector<std::optional<py::array>> arrays(traits_.states);
    if (state.is_none()) return arrays;
    const auto parts = split_state(state, name, traits_);
    for (int i = 0; i < traits_.states; ++i) {
      if (parts_may_be_none && parts[i].is_none()) continue;
      const std::string shown = state_name(name, traits_, i);
      arrays[i] = require_array(parts[i], shown, dtype_, Use::input_of_layer);
      require_shape(*arrays[i], shown, {1, rows, config_.net.hidden_size});
      require_unit_stride(*arrays[i], shown);
    }
    return arrays;
  }
  static StateArray<const void> state_of(const std::optional<py::array>& array) {
    if (!array) return {};
    return {array->data(), 0, stride_of(*array, 1)};
  }
  std::vector<py::array> new_state(Index rows) const {
    std::vector<py::array> arrays;
    for (int i = 0; i < traits_.states; ++i) arrays.push_back(new_array(dtype_, {1, rows, config_.net.hidden_size}));
    return arrays;
  }

  // What a training call keeps for its tape and its caller.
  template <class Real>
  void allocate_tape(const DecoderShape& shape, DecoderCall<Real>& call, PyDecoderTape& kept) const {
    py::array attention = new_array(dtype_, shape.by_step(shape.locations));
    call.shares = shape.write<Real>(attention);
    kept.attention = kept_array(attention);
    kept.locations = kept.log_prob = kept.entropy = py::none();
    if (!config_.hard) return;
    py::array locations = new_array(py::dtype::of<std::int64_t>(), shape.flat());
    py::array log_prob = new_array(dtype_, shape.flat()), entropy = new_array(dtype_, shape.flat());
    call.location = shape.write<std::int64_t>(locations);
    call.log_prob = shape.write<Real>(log_prob);
    call.entropy = shape.write<Real>(entropy);
    kept.locations = kept_array(locations);
    kept.log_prob = kept_array(log_prob);
    kept.entropy = kept_array(entropy);
  }

  template <class Real>
  py::tuple run_as(const py::dict& parameters, py::handle x_object, py::handle memory_object, py::handle memory_lengths,
                   py::handle state_object, py::handle lengths, bool training, bool draw) {
    const std::vector<py::array> weights = list_.arrays(parameters, "parameters");
    const py::array x = require_array(x_object, "x", dtype_, Use::input_of_layer);
    const Extent inputs = config_.x_size();
    require_shape(x, "x", batch_first_ ? Shape{"B", "T", inputs} : Shape{"T", "B", inputs});
    require_unit_stride(x, "x");
    DecoderShape shape;
    shape.batch_first = batch_first_;
    shape.steps = x.shape(batch_first_ ? 1 : 0);
    shape.rows = x.shape(batch_first_ ? 0 : 1);
    const py::array memory = memory_array(memory_object, shape);
    const auto state = state_arrays(state_object, "state", shape.rows, false);
    DecoderCall<Real> call;
    call.memory = sizes_of<Real>(memory, memory_lengths, shape);
    const std::vector<std::int64_t> counted = lengths_of(lengths, "lengths", shape.rows, shape.steps);
    call.net.lists = std::make_shared<const RowLists>(shape.steps, shape.rows,
                                                      lengths.is_none() ? nullptr : counted.data(), Flags{}, Flags{});
    call.net.weights = by_direction<const Real>(parameters_, [&](std::size_t i) { return data_of<Real>(weights[i]); });
    call.attention = attention_arrays<const Real>(weights, [](const py::array& array) { return data_of<Real>(array); });
    py::array y = new_array(dtype_, shape.by_step(config_.net.hidden_size));
    py::array context = new_array(dtype_, shape.by_step(config_.features));
    std::vector<py::array> final_state = new_state(shape.rows);
    call.net.steps = shape.steps;
    call.net.rows = shape.rows;
    call.net.x = shape.read<Real>(x);
    call.net.y = shape.write<Real>(y);
    call.context = shape.write<Real>(context);
    for (int i = 0; i < traits_.states; ++i) {
      call.net.initial[i] = state_of(state[i]);
      call.net.final[i] = {mutable_data_of<Real>(final_state[i]), 0, config_.net.hidden_size};
    }
    call.net.threads = num_threads();
    call.draw = draw;
    std::unique_ptr<PyDecoderTape> kept;
    DecoderTape<Real>* tape = nullptr;
    if (training || draw) call.net.call = calls_.fetch_add(1);
    if (training) {
      kept = std::make_unique<PyDecoderTape>();
      kept->owner = shared_from_this();
      kept->shape = shape;
      kept->kept = {x, y, memory, context};
      kept->kept.insert(kept->kept.end(), weights.begin(), weights.end());
      allocate_tape(shape, call, *kept);
      tape = &kept->tape.template emplace<DecoderTape<Real>>();
      tape->net.config = config_.net;
    }
    run_without_gil([&](const Interrupt& interrupt) {
      call.net.interrupt = interrupt;
      return run_decoder_forward(config_, call, tape);
    });
    if (!training) return py::make_tuple(y, context, joined_state(final_state));
    return py::make_tuple(y, context, joined_state(final_state), std::move(kept));
  }

  // A gradient by step and row, or nothing for None.
  std::optional<py::array> gradient_array(py::handle object, const std::string& name,
                                          const std::vector<Index>& shape) const {
    if (object.is_none()) return std::nullopt;
    const py::array array = require_array(object, name, dtype_, Use::input_of_layer);
    require_shape(array, name, as_wanted(shape));
    if (shape.size() == 3) require_unit_stride(array, name);
    for (int axis = 0; axis < 2; ++axis)
      if (array.shape(axis) > 1 && array.strides(axis) % array.itemsize() != 0)
        throw py::value_error(sentence::whole_strides(name, "numpy.ascontiguousarray(" + name + ")"));
    return array;
  }

  // Gradients are accumulated into: they must be nobody else's memory.
  void require_free(const std::vector<py::array>& gradients, const PyDecoderTape& tape,
                    const std::vector<std::pair<const char*, std::optional<py::array>>>& given) const {
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      const std::string name = list_.entry("grads.parameters", i);
      for (const py::object& kept : tape.kept)
        require_disjoint(gradients[i], name, py::reinterpret_borrow<py::array>(kept), "what the tape refers to");
      for (const auto& [other, array] : given)
        if (array) require_disjoint(gradients[i], name, *array, other);
      for (std::size_t j = 0; j < i; ++j)
        require_disjoint(gradients[i], name, gradients[j], list_.entry("grads.parameters", j));
    }
  }

  template <class Real>
  py::tuple backward_as(const PyDecoderTape& kept, py::handle dy_object, py::handle dcontext_object,
                        py::handle dstate_object, py::handle dlog_prob_object, py::handle dentropy_object,
                        py::handle given) {
    const DecoderShape& shape = kept.shape;
    const DecoderTape<Real>& tape = std::get<DecoderTape<Real>>(kept.tape);
    const auto dy = gradient_array(dy_object, "dy", shape.by_step(config_.net.hidden_size));
    const auto dcontext = gradient_array(dcontext_object, "dcontext", shape.by_step(config_.features));
    if (!config_.hard)
      for (const auto& [name, object] : {std::pair("dlog_prob", dlog_prob_object), {"dentropy", dentropy_object}})
        if (!object.is_none()) throw py::value_error(std::string(name) + " must be None for soft attention");
    const auto dlog_prob = gradient_array(dlog_prob_object, "dlog_prob", shape.flat());
    const auto dentropy = gradient_array(dentropy_object, "dentropy", shape.flat());
    const auto dstate = state_arrays(dstate_object, "dstate", shape.rows, true);
    py::dict result;
    std::vector<py::array> gradients = list_.gradients(given, tape.call.net.lists->packed_rows() > 0, result);
    if (!given.is_none()) {
      std::vector<std::pair<const char*, std::optional<py::array>>> others = {
          {"dy", dy}, {"dcontext", dcontext}, {"dlog_prob", dlog_prob}, {"dentropy", dentropy}};
      for (const auto& part : dstate) others.emplace_back("dstate", part);
      require_free(gradients, kept, others);
    }
    py::array dx = new_array(dtype_, shape.by_step(config_.x_size()));
    py::array dmemory = new_array(dtype_, shape.by_location(config_.features));
    std::vector<py::array> initial = new_state(shape.rows);
    DecoderGradients<Real> call;
    if (dy) call.net.dy = shape.read<Real>(*dy);
    if (dcontext) call.dcontext = shape.read<Real>(*dcontext);
    if (dlog_prob) call.dlog_prob = shape.read<Real>(*dlog_prob);
    if (dentropy) call.dentropy = shape.read<Real>(*dentropy);
    call.net.dx = shape.write<Real>(dx);
    call.dmemory = shape.write<Real>(dmemory);
    for (int i = 0; i < traits_.states; ++i) {
      call.net.dfinal[i] = state_of(dstate[i]);
      call.net.dinitial[i] = {mutable_data_of<Real>(initial[i]), 0, config_.net.hidden_size};
    }
    call.net.gradients =
        by_direction<Real>(parameters_, [&](std::size_t i) { return mutable_data_of<Real>(gradients[i]); });
    call.attention = attention_arrays<Real>(gradients, [](py::array& array) { return mutable_data_of<Real>(array); });
    call.net.accumulate = !given.is_none();
    call.net.threads = num_threads();
    run_without_gil([&](const Interrupt& interrupt) {
      call.net.interrupt = interrupt;
      return run_decoder_backward(config_, tape, call);
    });
    return py::make_tuple(dx, dmemory, joined_state(initial), result);
  }

  template <class Real>
  std::unique_ptr<PyDecoderStream> stream_as(const py::dict& parameters, py::handle memory_object,
                                             py::handle memory_lengths) const {
    const std::vector<py::array> weights = list_.arrays(parameters, "parameters");
    DecoderShape shape;
    shape.batch_first = batch_first_;
    shape.rows = -1;
    const py::array memory = memory_array(memory_object, shape);
    const AttentionSizes<Real> sizes = sizes_of<Real>(memory, memory_lengths, shape);
    const auto attention =
        attention_arrays<const Real>(weights, [](const py::array& array) { return data_of<Real>(array); });
    auto stream = std::make_unique<DecoderStream<Real>>(
        config_, by_direction<const Real>(parameters_, [&](std::size_t i) { return data_of<Real>(weights[i]); }),
        attention, sizes, num_threads());
    run_without_gil([&](const Interrupt& interrupt) { return stream->begin(attention, interrupt); });
    return std::make_unique<PyDecoderStream>(config_, traits_, dtype_, std::move(stream));
  }
};

}  // namespace

void register_attention_decoder(py::module_& module) {
  py::class_<PyDecoderTape>(
      module, "DecoderTape",
      "What backpropagation needs of one forward call; it refers to x, memory, y, context and the "
      "parameters.")
      .def_property_readonly("nbytes", &PyDecoderTape::bytes, "Bytes it holds beyond the arrays it refers to.")
      .def_readonly("attention", &PyDecoderTape::attention)
      .def_readonly("locations", &PyDecoderTape::locations)
      .def_readonly("log_prob", &PyDecoderTape::log_prob)
      .def_readonly("entropy", &PyDecoderTape::entropy)
      .def_static("__new__", &only_from_forward);
  py::class_<PyDecoderStream>(module, "DecoderStream")
      .def("step", &PyDecoderStream::step)
      .def("select", &PyDecoderStream::select)
      .def_property_readonly("attention", &PyDecoderStream::attention)
      .def_property("state", &PyDecoderStream::state, &PyDecoderStream::set_state);
  py::class_<Decoder, std::shared_ptr<Decoder>>(module, "Decoder")
      .def(py::init<const std::string&, Index, Index, Index, Index, bool, bool, std::uint64_t, const std::string&, bool,
                    double>(),
           py::kw_only(), py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("memory_size"),
           py::arg("attention_size"), py::arg("hard"), py::arg("bias"), py::arg("seed"), py::arg("dtype"),
           py::arg("batch_first"), py::arg("clip"))
      .def_property_readonly("parameter_shapes", &Decoder::parameter_shapes)
      .def_property("calls", &Decoder::calls, &Decoder::set_calls)
      .def("check_parameters", &Decoder::check_parameters)
      .def("run", &Decoder::run)
      .def("backward", &Decoder::backward)
      .def("stream", &Decoder::stream);
}

}  // namespace fusedrnn
