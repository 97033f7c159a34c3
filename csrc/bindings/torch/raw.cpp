// Layers on torch's tensors, for its adapter: a call must cost microseconds there, so reading and checking the tensors
// is done here and not in Python. Where the engine does not take the tensors, the answer is None and no error; Python
// then finds out why.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "bindings/interrupt.h"
#include "bindings/register.h"
#include "bindings/torch/tensors.h"
#include "cpu/isa.h"
#include "cpu/layers/packed.h"
#include "cpu/layers/recurrent.h"
#include "cpu/layers/rounding.h"
#include "cpu/layers/single_step.h"
#include "cpu/layers/step_cost.h"
#include "net/parameters.h"

namespace fusedrnn {
namespace {

namespace py = pybind11;

using Address = std::uintptr_t;                          // 0: none
using Lists = std::optional<std::shared_ptr<RowLists>>;  // none: every row has all steps

// A mask's address and its strides of time and rows.
using FlagsAddress = std::tuple<Address, Index, Index>;
Flags flags_of(const FlagsAddress& at) {
  return {reinterpret_cast<const unsigned char*>(std::get<0>(at)), std::get<1>(at), std::get<2>(at)};
}

std::shared_ptr<RowLists> padded_lists(Index steps, Index rows, Address lengths, const FlagsAddress& reset,
                                       const FlagsAddress& mask) {
  const auto* first = reinterpret_cast<const std::int64_t*>(lengths);
  // Copied first, as another thread may write them after the check.
  const std::vector<std::int64_t> counted(first, first ? first + rows : first);
  if (std::any_of(counted.begin(), counted.end(), [steps](std::int64_t n) { return n < 0 || n > steps; }))
    throw py::value_error("lengths must lie in [0, " + std::to_string(steps) + "]");
  return std::make_shared<RowLists>(steps, rows, first ? counted.data() : nullptr, flags_of(reset), flags_of(mask));
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

// work(T{}) of the type of elements of so many bits.
template <class Work>
auto with_elements(int bits, const Work& work) {
  if (bits == 16) return work(Bfloat16{});
  return bits == 32 ? work(float{}) : work(double{});
}

// Whether sums and c are of a wider type than the tensors.
template <class T>
constexpr bool kNarrow = !std::is_same_v<T, Accumulator<T>>;

struct RawLayers {
  RecurrentConfig config;
  CellTraits traits;
  int bits;  // of an element
  std::shared_ptr<const Tensors> tensors;
  std::vector<Parameter> parameters;

  // Elements of the tape, which are of the tensors' type, for each row of a sequence.
  Index tape_row() const {
    if (bits == 16) return tape_row_elements<Bfloat16>(config);
    return bits == 32 ? tape_row_elements<float>(config) : tape_row_elements<double>(config);
  }
};

// Some elements of a parameter. torch does not count every write to a tensor: one through .data or NumPy that changes
// all of it, as a training step's does, shows here.
struct Samples {
  static constexpr Index kCount = 16;
  const char* data;
  std::array<char, kCount * 8> bytes = {};

  Samples(const TensorView& view, int bits) : data(view.data) {
    const Index width = bits / 8, last = view.numel() - 1;
    for (Index i = 0; i < kCount; ++i)
      std::memcpy(bytes.data() + i * width, data + last * i / (kCount - 1) * width, static_cast<std::size_t>(width));
  }
  bool operator==(const Samples& other) const { return data == other.data && bytes == other.bytes; }
};

// The packed parameters of a call, for later ones; what they were packed from is told by its addresses and samples.
struct RawPacked {
  std::shared_ptr<const RawLayers> layers;
  std::vector<Samples> from;
  std::variant<std::monostate, PackedNet<float>, PackedNet<double>, PackedNet<Bfloat16>> net;
};

// A call whose tensors have been read, and are kept. It is to be run at once: their storages may change afterwards.
class RawCall {
 public:
  RawCall(std::shared_ptr<const RawLayers> layers, const std::string& form, Index steps, Index rows, const Lists& lists)
      : layers_(std::move(layers)), form_(Form::of(form)), steps_(steps), rows_(rows), lists_(lists) {
    if (form_.packed && !lists_) throw py::value_error("a packed sequence needs its lists of rows");
  }

  // Whether the engine can read the tensors where they lie.
  bool read(py::handle x, const py::tuple& states, const py::sequence& weights) {
    const std::vector<Parameter>& parameters = layers_->parameters;
    if (states.size() != number_of_states() || weights.size() != parameters.size()) return false;
    given_ = py::tuple(first_weight() + parameters.size());
    inputs_.resize(given_.size());
    given_[0] = x;
    if (!read_sequence(x, layers_->config.input_size, inputs_[0])) return false;
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (!read_state(states[i], inputs_[kStates + i])) return false;
      given_[kStates + i] = states[i];
    }
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const py::object weight = weights[i];
      TensorView& view = inputs_[first_weight() + i];
      if (!read(weight, view) || !view.is_contiguous() || !view.has_shape(parameters[i].shape) || !view.data)
        return false;
      given_[first_weight() + i] = weight;
    }
    return true;
  }

  std::unique_ptr<RawPacked> pack(int threads) const {
    auto packed = std::make_unique<RawPacked>();
    packed->layers = layers_;
    packed->from = samples();
    with_elements(layers_->bits, [&](auto item) { pack_weights<decltype(item)>(threads, *packed); });
    return packed;
  }
  // Whether `pack` would make the same again, as far as addresses and samples tell.
  bool fits(const RawPacked& packed) const { return packed.layers == layers_ && packed.from == samples(); }

  // (y, final states, tape): a single step has no y but its h, and only training has a tape, else it is None.
  // Packed parameters, in inference alone, are to fit.
  py::tuple forward(int threads, bool training, const RawPacked* packed) const {
    if (packed && (training || packed->layers != layers_)) throw py::value_error("packed must be of the same layers");
    TensorView y, tape;
    States<TensorView> final;
    const py::object x = given_[0];
    py::tuple new_final(number_of_states());
    for (std::size_t i = 0; i < new_final.size(); ++i) new_final[i] = make(x, state_shape(), final[i]);
    const py::object new_y = is_step() ? new_final[0] : make(x, sequence_shape(layers_->config.width()), y);
    const py::object new_tape = training ? make(x, tape_shape(), tape) : py::none();
    if (is_step()) y = final[0];
    with_elements(layers_->bits, [&](auto item) { run<decltype(item)>(threads, y, final, tape.data, packed); });
    return py::make_tuple(new_y, new_final, new_tape);
  }

  // Gradients of x, the states and the weights, None where not wanted. None for all, with nothing done, where y, the
  // tape or a gradient of an output is not what it has to be; a single step may have no y.
  std::optional<py::tuple> backward(int threads, py::handle y, py::handle tape, py::handle dy, const py::tuple& dfinal,
                                    const py::tuple& wanted) const {
    BackwardViews b;
    const Index width = layers_->config.width();
    if (!(is_step() && y.is_none()) && !read_sequence(y, width, b.y)) return std::nullopt;
    if (!dy.is_none() && !read_sequence(dy, width, b.dy)) return std::nullopt;
    if (dfinal.size() != number_of_states()) throw py::value_error("dfinal must have an entry for each state");
    for (std::size_t i = 0; i < dfinal.size(); ++i)
      if (!read_state(dfinal[i], b.dfinal[i])) return std::nullopt;
    if (!read_tape(tape, b.tape)) return std::nullopt;
    if (wanted.size() != given_.size()) throw py::value_error("wanted must have a bool for each input");
    py::tuple gradients(given_.size());
    b.gradients.resize(given_.size());
    for (std::size_t i = 0; i < given_.size(); ++i) {
      if (!wanted[i].cast<bool>())
        gradients[i] = py::none();
      else if (i == 0)  // x need not be contiguous
        gradients[i] = make(given_[i], sequence_shape(layers_->config.input_size), b.gradients[i]);
      else
        gradients[i] = layers_->tensors->make_like(given_[i], inputs_[i], b.gradients[i]);
    }
    with_elements(layers_->bits, [&](auto item) { differentiate<decltype(item)>(threads, b); });
    return gradients;
  }

 private:
  // A list of inputs, or of their gradients, has x, the states and the weights.
  static constexpr std::size_t kStates = 1;

  struct BackwardViews {
    TensorView y, tape, dy;
    States<TensorView> dfinal;
    std::vector<TensorView> gradients;
  };

  std::shared_ptr<const RawLayers> layers_;
  Form form_;
  Index steps_, rows_;
  Lists lists_;
  py::tuple given_;
  std::vector<TensorView> inputs_;

  std::size_t number_of_states() const { return static_cast<std::size_t>(layers_->traits.states); }
  std::size_t first_weight() const { return kStates + number_of_states(); }

  std::vector<Samples> samples() const {
    std::vector<Samples> samples;
    samples.reserve(inputs_.size() - first_weight());
    for (std::size_t i = first_weight(); i < inputs_.size(); ++i) samples.emplace_back(inputs_[i], layers_->bits);
    return samples;
  }
  template <class Real>
  void pack_weights(int threads, RawPacked& packed) const {
    const auto weights = arrays_of<const Real>(inputs_);
    const GilReleased released;
    packed.net.template emplace<PackedNet<Real>>(layers_->config, weights, threads);
  }

  bool is_step() const { return form_.time < 0 && !form_.packed; }
  Index sequence_rows() const { return form_.packed ? (*lists_)->packed_rows() : steps_ * rows_; }
  Shape sequence_shape(Index width) const {
    if (form_.time < 0) return {sequence_rows(), width};
    return form_.time == 0 ? Shape{steps_, rows_, width} : Shape{rows_, steps_, width};
  }
  Shape state_shape() const {
    const Index hidden = layers_->config.hidden_size;
    return is_step() ? Shape{rows_, hidden} : Shape{layers_->config.layers * layers_->config.directions, rows_, hidden};
  }
  Shape tape_shape() const { return {layers_->tape_row() * sequence_rows()}; }

  py::object make(py::handle like, const Shape& shape, TensorView& view) const {
    return layers_->tensors->make(like, layers_->bits, shape, view);
  }
  bool read(py::handle tensor, TensorView& view) const { return layers_->tensors->read(tensor, layers_->bits, view); }
  bool read_sequence(py::handle tensor, Index width, TensorView& view) const {
    return read(tensor, view) && view.has_unit_stride() && view.has_shape(sequence_shape(width));
  }
  bool read_state(py::handle tensor, TensorView& view) const {
    return tensor.is_none() || (read(tensor, view) && view.is_contiguous() && view.has_shape(state_shape()));
  }
  bool read_tape(py::handle tensor, TensorView& view) const {
    return read(tensor, view) && view.is_contiguous() && view.has_shape(tape_shape()) &&
           reinterpret_cast<std::uintptr_t>(view.data) % 64 == 0;
  }

  template <class Real>
  static Real* data(const TensorView& view) {
    return reinterpret_cast<Real*>(view.data);
  }
  template <class Void>
  StateArray<Void> state(void* data) const {
    return {data, rows_ * layers_->config.hidden_size, layers_->config.hidden_size};
  }
  // A state, or its gradient, that the engine reads; a narrow tensor of c in a copy, which is `wide`.
  template <class T>
  StateArray<const void> read_state_of(std::size_t i, const TensorView& view, Buffer& wide) const {
    if (!kNarrow<T> || i == 0 || !view.data) return state<const void>(view.data);
    auto* const to = take_wide<T>(view, wide);
    std::transform(data<T>(view), data<T>(view) + view.numel(), to, [](T value) { return widen(value); });
    return state<const void>(to);
  }
  // One that it writes; that of c goes on from `wide` to its tensor by round_state.
  template <class T>
  StateArray<void> written_state(std::size_t i, const TensorView& view, Buffer& wide) const {
    return state<void>(kNarrow<T> && i > 0 && view.data ? reinterpret_cast<char*>(take_wide<T>(view, wide))
                                                        : view.data);
  }
  template <class T>
  static Accumulator<T>* take_wide(const TensorView& view, Buffer& wide) {
    wide = Buffer(static_cast<std::size_t>(view.numel()) * sizeof(Accumulator<T>));
    return wide.as<Accumulator<T>>();
  }
  template <class T>
  static void round_state(const Buffer& wide, const TensorView& view) {
    if (wide.data()) round<T>(wide.as<Accumulator<T>>(), view);
  }
  template <class T>
  static void round(const Accumulator<T>* from, const TensorView& view) {
    if constexpr (kNarrow<T>) fusedrnn::round_sums(from, data<T>(view), view.numel(), false);
  }
  template <class Real>
  Sequence<Real> sequence(const TensorView& view) const {
    const Index time = form_.time < 0 ? 0 : view.strides[static_cast<std::size_t>(form_.time)];
    const RowLists* given = lists_ ? lists_->get() : nullptr;
    return {data<Real>(view), time, view.strides[static_cast<std::size_t>(form_.row)],
            given ? given->starts() : nullptr};
  }

  // Of a list of inputs, or of their gradients, the weights' for each direction.
  template <class Real>
  std::vector<ParameterArrays<Real>> arrays_of(const std::vector<TensorView>& views) const {
    return by_direction<Real>(layers_->parameters,
                              [&](std::size_t i) { return data<Real>(views[first_weight() + i]); });
  }

  // `c0`: c's copy, if it takes one, for as long as the call lives.
  template <class T>
  ForwardCall<T> call_of(int threads, const TensorView& y, Buffer& c0) const {
    ForwardCall<T> call;
    call.steps = steps_;
    call.rows = rows_;
    call.weights = arrays_of<const T>(inputs_);
    call.x = sequence<const T>(inputs_[0]);
    call.y = sequence<T>(y);
    for (std::size_t i = 0; i < number_of_states(); ++i)
      call.initial[i] = read_state_of<T>(i, inputs_[kStates + i], c0);
    call.threads = threads;
    if (lists_) call.lists = *lists_;
    return call;
  }
  std::shared_ptr<const RowLists> whole() const {
    return std::make_shared<const RowLists>(steps_, rows_, nullptr, Flags(), Flags());
  }

  template <class T>
  void run(int threads, const TensorView& y, const States<TensorView>& final, char* memory,
           const RawPacked* packed) const {
    Buffer c0, cn;
    ForwardCall<T> call = call_of<T>(threads, y, c0);
    for (std::size_t i = 0; i < number_of_states(); ++i) call.final[i] = written_state<T>(i, final[i], cn);
    if (packed) std::get<PackedNet<T>>(packed->net).use_in(call);
    if (!memory && !lists_ && steps_ == 1 && (packed ? packed_step_pays(rows_) : single_step_pays<T>(rows_))) {
      std::optional<GilReleased> released;
      if (step_work(layers_->traits, layers_->config, rows_) > kShortStep) released.emplace();
      run_single_step(layers_->config, call);
    } else {
      if (!lists_) call.lists = whole();
      Tape<T> tape;
      tape.config = layers_->config;
      if (memory) borrow_tape(call, memory, tape);
      run_without_gil([&](const Interrupt& interrupt) {
        call.interrupt = interrupt;
        return run_forward(layers_->config, call, memory ? &tape : nullptr);
      });
    }
    if (number_of_states() > 1) round_state<T>(cn, final[1]);
  }

  template <class T>
  void differentiate(int threads, const BackwardViews& b) const {
    Buffer c0, dcn, dc0;
    ForwardCall<T> forward = call_of<T>(threads, b.y, c0);
    if (!lists_) forward.lists = whole();
    Tape<T> tape;
    tape.config = layers_->config;
    borrow_tape(forward, data<char>(b.tape), tape);
    BackwardCall<T> call;
    call.dy = sequence<const T>(b.dy);
    call.dx = sequence<T>(b.gradients[0]);
    for (std::size_t i = 0; i < number_of_states(); ++i) {
      call.dfinal[i] = read_state_of<T>(i, b.dfinal[i], dcn);
      call.dinitial[i] = written_state<T>(i, b.gradients[kStates + i], dc0);
    }
    std::vector<Buffer> memory;
    const std::vector<TensorView> sums = sums_for<T>(b.gradients, memory);
    call.gradients = arrays_of<Accumulator<T>>(sums);
    call.threads = threads;
    tape.call = std::move(forward);
    run_without_gil([&](const Interrupt& interrupt) {
      if (tape.call.lists->packed_rows() == 0) clear<Accumulator<T>>(sums);  // else the kernels write all of them
      call.interrupt = interrupt;
      if (!run_backward(tape, call)) return false;
      round_sums<T>(sums, b.gradients);
      return true;
    });
    if (number_of_states() > 1) round_state<T>(dc0, b.gradients[kStates + 1]);
  }

  // Where the sums of the weights' gradients go: into the gradients themselves, or where those are narrow into memory
  // of their own.
  template <class T>
  std::vector<TensorView> sums_for(const std::vector<TensorView>& gradients, std::vector<Buffer>& memory) const {
    std::vector<TensorView> sums = gradients;
    for (std::size_t i = first_weight(); kNarrow<T> && i < sums.size(); ++i)
      if (sums[i].data) sums[i].data = reinterpret_cast<char*>(take_wide<T>(sums[i], memory.emplace_back()));
    return sums;
  }
  template <class T>
  void round_sums(const std::vector<TensorView>& sums, const std::vector<TensorView>& gradients) const {
    for (std::size_t i = first_weight(); kNarrow<T> && i < sums.size(); ++i)
      if (sums[i].data) round<T>(data<Accumulator<T>>(sums[i]), gradients[i]);
  }
  template <class Real>
  void clear(const std::vector<TensorView>& gradients) const {
    for (std::size_t i = first_weight(); i < gradients.size(); ++i)
      if (gradients[i].data) std::fill_n(data<Real>(gradients[i]), gradients[i].numel(), Real(0));
  }
};

class RawRecurrent {
 public:
  RawRecurrent(const std::string& cell, Index input_size, Index hidden_size, int layers, bool bidirectional, bool bias,
               const std::string& dtype, std::shared_ptr<const Tensors> tensors) {
    RawLayers made;
    RecurrentConfig& config = made.config;
    const std::vector<CellTraits> cells = registered_cells();
    config.cell = find_cell(cells, cell);
    config.input_size = input_size;
    config.hidden_size = hidden_size;
    config.layers = layers;
    config.directions = bidirectional ? 2 : 1;
    config.bias = bias;
    made.traits = cells[static_cast<std::size_t>(config.cell)];
    made.bits = dtype == "bfloat16" ? 16 : dtype == "float32" ? 32 : 64;
    made.tensors = std::move(tensors);
    made.parameters = parameters_of(made.traits, config);
    layers_ = std::make_shared<const RawLayers>(std::move(made));
  }

  Index tape_row() const { return layers_->tape_row(); }
  std::vector<Shape> parameter_shapes() const {
    std::vector<Shape> shapes;
    for (const Parameter& parameter : layers_->parameters) shapes.push_back(parameter.shape);
    return shapes;
  }

  // Addresses and samples of parameters, which change with most writes to them; none where they cannot be read.
  std::optional<py::bytes> samples(const py::sequence& weights) const {
    std::string found;
    for (const py::handle weight : weights) {
      TensorView view;
      if (!layers_->tensors->read(weight, layers_->bits, view) || !view.is_contiguous() || !view.data)
        return std::nullopt;
      const Samples samples(view, layers_->bits);
      found.append(reinterpret_cast<const char*>(&samples.data), sizeof samples.data);
      found.append(samples.bytes.data(), samples.bytes.size());
    }
    return py::bytes(found);
  }

  // A call on these tensors, or none where the engine cannot read them as they are: one is of another class, dtype,
  // device or shape, has other strides, or its storage has become too small for it.
  std::optional<RawCall> bind(const std::string& form, Index steps, Index rows, const Lists& lists, py::handle x,
                              const py::tuple& states, const py::sequence& weights) const {
    std::optional<RawCall> call(std::in_place, layers_, form, steps, rows, lists);
    if (!call->read(x, states, weights)) call.reset();
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
  py::class_<Tensors, std::shared_ptr<Tensors>>(module, "Tensors", "How to read and make torch's tensors.")
      .def(py::init<py::object, py::object>());
  py::class_<RawRecurrent>(module, "RawRecurrent", "Layers on torch's tensors.")
      .def(py::init<const std::string&, Index, Index, int, bool, bool, const std::string&, std::shared_ptr<Tensors>>())
      .def_property_readonly("tape_row", &RawRecurrent::tape_row)
      .def_property_readonly("parameter_shapes", &RawRecurrent::parameter_shapes)
      .def("samples", &RawRecurrent::samples)
      .def("bind", &RawRecurrent::bind);
  py::class_<RawPacked>(module, "RawPacked", "The parameters of calls, packed.");
  py::class_<RawCall>(module, "RawCall", "A call whose tensors have been read, to be run at once.")
      .def("pack", &RawCall::pack)
      .def("fits", &RawCall::fits)
      .def("forward", &RawCall::forward, py::arg("threads"), py::arg("training"), py::arg("packed") = nullptr)
      .def("backward", &RawCall::backward);
}

}  // namespace fusedrnn
