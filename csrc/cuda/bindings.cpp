// The module: plain functions over pointers, strides, a device and a stream. Arrays, their checks and their memory are
// Python's (python/fusedrnn/engines/cuda/), so that no array library is needed here. Compiled as _cuda, and as
// _cuda_host with the engine of the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "bindings/gil.h"
#include "cuda/kernels.h"
#include "cuda/operations.h"
#ifdef FUSEDRNN_CUDA_HOST
#include "cuda/runtime/host_backend.h"
#define FUSEDRNN_MODULE _cuda_host
#else
#include <cuda_runtime.h>

#include "cuda/runtime/blas.h"
#define FUSEDRNN_MODULE _cuda
#endif

namespace fusedrnn {
namespace {

namespace py = pybind11;
using Address = std::uintptr_t;
using View = std::tuple<Address, Index, Index>;             // data, stride of time or layers, stride of rows
using NormView = std::tuple<Address, Index, Index, Index>;  // data, strides of layers, time and rows

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

SequenceView sequence(const View& view) { return {pointer(std::get<0>(view)), std::get<1>(view), std::get<2>(view)}; }
// The arrays of a cell's states in their order; those that the cell does not have are absent.
States<StateView> states(const std::vector<View>& views) {
  if (views.size() > kMaxStates) throw py::value_error("a cell has at most " + std::to_string(kMaxStates) + " states");
  States<StateView> result;
  for (std::size_t i = 0; i < views.size(); ++i)
    result[i] = {pointer(std::get<0>(views[i])), std::get<1>(views[i]), std::get<2>(views[i])};
  return result;
}

// The arrays of each direction of each layer, of the addresses of all parameters in their order; of no addresses none.
template <class Item>
std::vector<ParameterArrays<Item>> directions_of(const NetConfig& config, const std::vector<Address>& addresses) {
  if (addresses.empty()) return {};
  return by_direction<Item>(config.parameters, [&](std::size_t i) { return pointer(addresses.at(i)); });
}

Type type_of(const std::string& name) {
  if (name == "float32") return Type::float32;
  if (name == "float64") return Type::float64;
  if (name == "bfloat16") return Type::bfloat16;
  if (name == "float16") return Type::float16;
  throw py::value_error("dtype must be 'float32', 'float64', 'bfloat16' or 'float16', not '" + name + "'");
}

NetConfig make_config(const std::string& cell, Index input_size, Index hidden_size, int layers, int directions,
                      bool bias, bool reverse, double clip, double dropout, std::uint64_t seed,
                      const std::string& dtype, bool tf32, bool loop_inside, int device) {
  NetConfig config;
  const std::vector<CellTraits> cells = Engine::cells();
  config.cell = find_cell(cells, cell);
  config.input_size = input_size;
  config.hidden_size = hidden_size;
  config.layers = layers;
  config.directions = directions;
  config.bias = bias;
  config.reverse = reverse;
  config.clip = clip;
  config.dropout = dropout;
  config.seed = seed;
  config.type = type_of(dtype);
  config.tf32 = tf32;
  config.loop_inside = loop_inside;
  config.multiprocessors = Engine::multiprocessors(device);
  config.parameters = parameters_of(cells[config.cell], config);
  return config;
}

// A call whose parameters are still plain addresses: only a net knows which parameter each of them is.
struct PyForward : NetForward {
  std::vector<Address> addresses;
  NetForward on(const NetConfig& config) const {
    NetForward call = *this;
    call.weights = directions_of<const void>(config, addresses);
    return call;
  }
};

PyForward make_forward(Index steps, Index rows, bool training, bool persistent, Index recompute,
                       const std::vector<Address>& weights, const View& x, const View& y,
                       const std::vector<View>& initial, const std::vector<View>& final, Address lengths,
                       const View& reset, const View& mask, Address calls, Address kept) {
  PyForward call;
  call.steps = steps;
  call.rows = rows;
  call.training = training;
  call.persistent = persistent;
  call.recompute = recompute;
  call.addresses = weights;
  call.x = sequence(x);
  call.y = sequence(y);
  call.initial = states(initial);
  call.final = states(final);
  call.lengths = static_cast<const std::int64_t*>(pointer(lengths));
  call.reset = static_cast<const bool*>(pointer(std::get<0>(reset)));
  call.reset_time = std::get<1>(reset);
  call.reset_row = std::get<2>(reset);
  call.mask = static_cast<const bool*>(pointer(std::get<0>(mask)));
  call.mask_time = std::get<1>(mask);
  call.mask_row = std::get<2>(mask);
  call.calls = static_cast<std::uint64_t*>(pointer(calls));
  call.kept = pointer(kept);
  return call;
}

// A function of the net's type of numbers.
template <class Result, class... Arguments>
auto of_type(Result (*DeviceKernels::*function)(const NetConfig&, Arguments...)) {
  return [function](const NetConfig& config, Arguments... arguments) {
    return (table_of<DeviceKernels>(config.type).*function)(config, arguments...);
  };
}

// Memory for a call, in bytes.
template <std::size_t (*DeviceKernels::*count)(const NetConfig&, const NetForward&)>
std::size_t bytes_of(const NetConfig& config, const PyForward& call) {
  return (table_of<DeviceKernels>(config.type).*count)(config, call);
}

std::size_t backward_bytes(const NetConfig& config, const PyForward& call, bool norms) {
  return table_of<DeviceKernels>(config.type).backward_bytes(config, call, norms);
}

void run_forward(const NetConfig& config, int device, Address stream, PyForward& given, Address kept,
                 Address workspace) {
  given.kept = pointer(kept);
  given.workspace = pointer(workspace);
  const NetForward call = given.on(config);
  const GilReleased released;
  table_of<DeviceKernels>(config.type).forward({device, pointer(stream)}, config, call);
}

NetBackward make_backward(const NetConfig& config, const View& dy, const View& dx, const std::vector<View>& dfinal,
                          const std::vector<View>& dinitial, const std::vector<Address>& gradients, bool accumulate,
                          Address workspace) {
  NetBackward gradient;
  gradient.dy = sequence(dy);
  gradient.dx = sequence(dx);
  gradient.dfinal = states(dfinal);
  gradient.dinitial = states(dinitial);
  gradient.gradients = directions_of<void>(config, gradients);
  gradient.accumulate = accumulate;
  gradient.workspace = pointer(workspace);
  return gradient;
}

void run_backward(const NetConfig& config, int device, Address stream, const PyForward& given, const View& dy,
                  const View& dx, const std::vector<View>& dfinal, const std::vector<View>& dinitial,
                  const std::vector<Address>& gradients, bool accumulate, const std::vector<NormView>& norms,
                  Address workspace) {
  NetBackward gradient = make_backward(config, dy, dx, dfinal, dinitial, gradients, accumulate, workspace);
  if (norms.size() > kMaxStates) throw py::value_error("a cell has at most " + std::to_string(kMaxStates) + " states");
  for (std::size_t i = 0; i < norms.size(); ++i)
    gradient.norms[i] = {pointer(std::get<0>(norms[i])), std::get<1>(norms[i]), std::get<2>(norms[i]),
                         std::get<3>(norms[i])};
  const NetForward call = given.on(config);
  const GilReleased released;
  table_of<DeviceKernels>(config.type).backward({device, pointer(stream)}, config, call, gradient);
}

// A decoder's calls: a net's, with those of attention.
std::size_t decoder_bytes(const NetConfig& config, const PyForward& call, const AdditiveAttentionCall& attention,
                          bool backward) {
  return table_of<DeviceKernels>(config.type).decoder_bytes(config, call, attention, backward);
}
void run_decoder_forward(const NetConfig& config, int device, Address stream, PyForward& given,
                         const AdditiveAttentionCall& attention, Address kept, Address workspace) {
  given.kept = pointer(kept);
  given.workspace = pointer(workspace);
  const NetForward call = given.on(config);
  const GilReleased released;
  table_of<DeviceKernels>(config.type).decoder_forward({device, pointer(stream)}, config, call, attention);
}
void run_decoder_backward(const NetConfig& config, int device, Address stream, const PyForward& given,
                          const AdditiveAttentionCall& attention, const View& dy, const View& dx,
                          const std::vector<View>& dfinal, const std::vector<View>& dinitial,
                          const std::vector<Address>& gradients, bool accumulate, Address workspace) {
  const NetBackward gradient = make_backward(config, dy, dx, dfinal, dinitial, gradients, accumulate, workspace);
  const NetForward call = given.on(config);
  const GilReleased released;
  table_of<DeviceKernels>(config.type).decoder_backward({device, pointer(stream)}, config, call, attention, gradient);
}

// Fields of a call, from Python's.
void read(py::handle from, Type& to) { to = type_of(from.cast<std::string>()); }
void read(py::handle from, SequenceView& to) { to = sequence(from.cast<View>()); }
template <class Element>
void read(py::handle from, Element*& to) {
  to = static_cast<Element*>(pointer(from.cast<Address>()));
}
template <class Number>
void read(py::handle from, Number& to) {
  to = from.cast<Number>();
}

// The call with these fields instead of its own. Only what Python sets is a keyword; what it does not set is zero.
template <class Call>
Call with_fields(Call call, py::kwargs fields) {
  call.each_field([&fields](const char* name, auto& field) {
    if (fields.contains(name)) read(fields.attr("pop")(name), field);
  });
  if (!fields.empty()) throw py::type_error("a call has no field " + py::str(py::list(fields)[0]).cast<std::string>());
  return call;
}

// Adds an operation's calls to the module.
template <class Call>
void add_operation(py::module_& module, const char* name, DeviceOperation<Call> DeviceOperations::* operation) {
  using Run = void (*DeviceOperation<Call>::*)(const Place&, const Call&);
  const auto method = [operation](Run run) {
    return [operation, run](Call call, int device, Address stream, Address workspace) {
      call.workspace = pointer(workspace);
      const GilReleased released;
      (table_of<DeviceOperations>(call.type).*operation.*run)({device, pointer(stream)}, call);
    };
  };
  py::class_<Call>(module, name, py::module_local())
      .def(py::init([](const py::kwargs& fields) { return with_fields(Call{}, fields); }))
      .def("with_fields", &with_fields<Call>)
      .def("bytes",
           [operation](const Call& call) { return (table_of<DeviceOperations>(call.type).*operation).bytes(call); })
      .def("forward", method(&DeviceOperation<Call>::forward))
      .def("backward", method(&DeviceOperation<Call>::backward));
}

void clip(int device, Address stream, const std::vector<std::tuple<Address, Index, std::string>>& arrays, double limit,
          Address norm, Address workspace) {
  std::vector<ClippedArray> clipped;
  for (const auto& [address, size, dtype] : arrays) clipped.push_back({pointer(address), size, type_of(dtype)});
  const GilReleased released;
  Engine::clip({device, pointer(stream)}, clipped, limit, static_cast<double*>(pointer(norm)), pointer(workspace));
}

}  // namespace
}  // namespace fusedrnn

PYBIND11_MODULE(FUSEDRNN_MODULE, module) {
  using namespace fusedrnn;
  // Local: a process may hold both builds of this file.
  py::class_<PyForward>(module, "ForwardCall", py::module_local())
      .def(py::init(&make_forward), py::kw_only(), py::arg("steps"), py::arg("rows"), py::arg("training"),
           py::arg("persistent"), py::arg("recompute"), py::arg("weights"), py::arg("x"), py::arg("y"),
           py::arg("initial"), py::arg("final"), py::arg("lengths"), py::arg("reset"), py::arg("mask") = View(),
           py::arg("calls"), py::arg("kept") = 0);
  py::class_<NetConfig>(module, "Net", py::module_local())
      .def(py::init(&make_config), py::kw_only(), py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("layers"), py::arg("directions"), py::arg("bias"), py::arg("reverse"), py::arg("clip"),
           py::arg("dropout"), py::arg("seed"), py::arg("dtype"), py::arg("tf32"), py::arg("loop_inside"),
           py::arg("device"))
      .def("persistent_refusal", of_type(&DeviceKernels::persistent_refusal))
      .def("kept_bytes", &bytes_of<&DeviceKernels::kept_bytes>)
      .def("forward_bytes", &bytes_of<&DeviceKernels::forward_bytes>)
      .def("backward_bytes", &backward_bytes, py::arg("call"), py::arg("norms") = false)
      .def("forward", &run_forward)
      .def("backward", &run_backward, py::arg("device"), py::arg("stream"), py::arg("call"), py::kw_only(),
           py::arg("dy"), py::arg("dx"), py::arg("dfinal"), py::arg("dinitial"), py::arg("gradients"),
           py::arg("accumulate"), py::arg("norms") = std::vector<NormView>(), py::arg("workspace"))
      .def("decoder_bytes", &decoder_bytes)
      .def("decoder_forward", &run_decoder_forward)
      .def("decoder_backward", &run_decoder_backward, py::arg("device"), py::arg("stream"), py::arg("call"),
           py::arg("attention"), py::kw_only(), py::arg("dy"), py::arg("dx"), py::arg("dfinal"), py::arg("dinitial"),
           py::arg("gradients"), py::arg("accumulate"), py::arg("workspace"));
#define FUSEDRNN_OPERATION(name, Name) add_operation<Name##Call>(module, #Name "Call", &DeviceOperations::name);
  FUSEDRNN_FOR_EACH_DEVICE_OPERATION(FUSEDRNN_OPERATION)
  module.def("clip_bytes", &Engine::clip_bytes);
  module.def("clip", &clip);
  module.def("capturing", [](int device, Address stream) { return Engine::capturing({device, pointer(stream)}); });
  module.attr("backend") = Engine::name();
#ifdef FUSEDRNN_CUDA_HOST
  module.def("set_reversed", [](bool reversed) { host_reversed = reversed; });
  module.def("set_chunk_bytes", [](Index bytes) { host_chunk_bytes = bytes; });
  module.def("set_block_bytes", [](Index bytes) { host_block_bytes = bytes; });
  module.def("set_capturing", [](bool capturing) { host_capturing = capturing; });
#else
  module.def("open_blas", &open_blas);
  module.attr("architectures") = FUSEDRNN_CUDA_ARCHITECTURES;
  module.attr("toolkit") = CUDART_VERSION;
#endif
}
