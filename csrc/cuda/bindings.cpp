// The module: plain functions over pointers, strides, a device and a stream. Arrays, their checks and their memory are
// Python's (python/fusedrnn/cuda/), so that no array library is needed here. Compiled as _cuda, and as _cuda_host with
// the engine of the tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "cuda/engine.h"
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
using View = std::tuple<Address, Index, Index>;  // data, stride of time or layers, stride of rows

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

SequenceView sequence(const View& view) { return {pointer(std::get<0>(view)), std::get<1>(view), std::get<2>(view)}; }
StateView state(const View& view) { return {pointer(std::get<0>(view)), std::get<1>(view), std::get<2>(view)}; }

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

// A call before it has met its net, which knows whose parameter an address is.
struct PyForward : NetForward {
  std::vector<Address> addresses;
  NetForward on(const NetConfig& config) const {
    NetForward call = *this;
    call.weights = directions_of<const void>(config, addresses);
    return call;
  }
};

PyForward make_forward(Index steps, Index rows, bool training, bool persistent, Index recompute,
                       const std::vector<Address>& weights, const View& x, const View& y, const View& h0,
                       const View& c0, const View& hn, const View& cn, Address lengths, const View& reset,
                       const View& mask, Address calls, Address kept) {
  PyForward call;
  call.steps = steps;
  call.rows = rows;
  call.training = training;
  call.persistent = persistent;
  call.recompute = recompute;
  call.addresses = weights;
  call.x = sequence(x);
  call.y = sequence(y);
  call.h0 = state(h0);
  call.c0 = state(c0);
  call.hn = state(hn);
  call.cn = state(cn);
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

template <std::size_t (*count)(const NetConfig&, const NetForward&)>
std::size_t bytes_of(const NetConfig& config, const PyForward& call) {
  return count(config, call);
}

void run_forward(const NetConfig& config, int device, Address stream, PyForward& given, Address kept,
                 Address workspace) {
  given.kept = pointer(kept);
  given.workspace = pointer(workspace);
  const NetForward call = given.on(config);
  const py::gil_scoped_release released;
  Engine::forward({device, pointer(stream)}, config, call);
}

void run_backward(const NetConfig& config, int device, Address stream, const PyForward& given, const View& dy,
                  const View& dx, const View& dhn, const View& dcn, const View& dh0, const View& dc0,
                  const std::vector<Address>& gradients, bool accumulate, Address workspace) {
  NetBackward gradient;
  gradient.dy = sequence(dy);
  gradient.dx = sequence(dx);
  gradient.dhn = state(dhn);
  gradient.dcn = state(dcn);
  gradient.dh0 = state(dh0);
  gradient.dc0 = state(dc0);
  gradient.gradients = directions_of<void>(config, gradients);
  gradient.accumulate = accumulate;
  gradient.workspace = pointer(workspace);
  const NetForward call = given.on(config);
  const py::gil_scoped_release released;
  Engine::backward({device, pointer(stream)}, config, call, gradient);
}

LinearCall make_linear(const std::string& dtype, Index rows, Index in_features, Index out_features, Address x,
                       Address weight, Address bias, Address y, Address dy, Address dx, Address dweight,
                       Address dbias) {
  LinearCall call;
  call.type = type_of(dtype);
  call.rows = rows;
  call.in_features = in_features;
  call.out_features = out_features;
  call.x = pointer(x);
  call.weight = pointer(weight);
  call.bias = pointer(bias);
  call.y = pointer(y);
  call.dy = pointer(dy);
  call.dx = pointer(dx);
  call.dweight = pointer(dweight);
  call.dbias = pointer(dbias);
  return call;
}

void linear(LinearCall call, int device, Address stream, Address workspace) {
  call.workspace = pointer(workspace);
  const py::gil_scoped_release released;
  Engine::linear({device, pointer(stream)}, call);
}

ReadoutCall make_readout(const std::string& dtype, bool tf32, Index rows, Index hidden_size, Index classes, Address x,
                         Address weight, Address bias, Address targets, std::int64_t ignore_index, int reduction,
                         Address loss, Address normalizers) {
  ReadoutCall call;
  call.type = type_of(dtype);
  call.tf32 = tf32;
  call.rows = rows;
  call.hidden_size = hidden_size;
  call.classes = classes;
  call.x = pointer(x);
  call.weight = pointer(weight);
  call.bias = pointer(bias);
  call.targets = static_cast<const std::int64_t*>(pointer(targets));
  call.ignore_index = ignore_index;
  call.reduction = reduction;
  call.loss = pointer(loss);
  call.normalizers = pointer(normalizers);
  return call;
}

void readout_forward(int device, Address stream, ReadoutCall call, Address workspace) {
  call.workspace = pointer(workspace);
  const py::gil_scoped_release released;
  Engine::readout_forward({device, pointer(stream)}, call);
}

// The call of a backward pass: dloss is one number, or one a row.
ReadoutCall differentiated(ReadoutCall call, Address dloss, Index dloss_row, Address dx, Address dweight,
                           Address dbias) {
  call.dloss = pointer(dloss);
  call.dloss_row = dloss_row;
  call.dx = pointer(dx);
  call.dweight = pointer(dweight);
  call.dbias = pointer(dbias);
  return call;
}
void readout_backward(int device, Address stream, ReadoutCall call, Address workspace) {
  call.workspace = pointer(workspace);
  const py::gil_scoped_release released;
  Engine::readout_backward({device, pointer(stream)}, call);
}

void clip(int device, Address stream, const std::vector<std::tuple<Address, Index, std::string>>& arrays, double limit,
          Address norm, Address workspace) {
  std::vector<ClippedArray> clipped;
  for (const auto& [address, size, dtype] : arrays) clipped.push_back({pointer(address), size, type_of(dtype)});
  const py::gil_scoped_release released;
  Engine::clip({device, pointer(stream)}, clipped, limit, static_cast<double*>(pointer(norm)), pointer(workspace));
}

}  // namespace
}  // namespace fusedrnn

PYBIND11_MODULE(FUSEDRNN_MODULE, module) {
  using namespace fusedrnn;
  // Local: a process may hold both builds of this file.
  py::class_<PyForward>(module, "ForwardCall", py::module_local())
      .def(py::init(&make_forward), py::kw_only(), py::arg("steps"), py::arg("rows"), py::arg("training"),
           py::arg("persistent"), py::arg("recompute"), py::arg("weights"), py::arg("x"), py::arg("y"), py::arg("h0"),
           py::arg("c0"), py::arg("hn"), py::arg("cn"), py::arg("lengths"), py::arg("reset"), py::arg("mask") = View(),
           py::arg("calls"), py::arg("kept") = 0);
  py::class_<NetConfig>(module, "Net", py::module_local())
      .def(py::init(&make_config), py::kw_only(), py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("layers"), py::arg("directions"), py::arg("bias"), py::arg("reverse"), py::arg("clip"),
           py::arg("dropout"), py::arg("seed"), py::arg("dtype"), py::arg("tf32"), py::arg("loop_inside"),
           py::arg("device"))
      .def("persistent_refusal", &Engine::persistent_refusal)
      .def("kept_bytes", &bytes_of<&Engine::kept_bytes>)
      .def("forward_bytes", &bytes_of<&Engine::forward_bytes>)
      .def("backward_bytes", &bytes_of<&Engine::backward_bytes>)
      .def("forward", &run_forward)
      .def("backward", &run_backward, py::arg("device"), py::arg("stream"), py::arg("call"), py::kw_only(),
           py::arg("dy"), py::arg("dx"), py::arg("dhn"), py::arg("dcn"), py::arg("dh0"), py::arg("dc0"),
           py::arg("gradients"), py::arg("accumulate"), py::arg("workspace"));
  py::class_<LinearCall>(module, "LinearCall", py::module_local())
      .def(py::init(&make_linear), py::kw_only(), py::arg("dtype"), py::arg("rows"), py::arg("in_features"),
           py::arg("out_features"), py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y") = 0,
           py::arg("dy") = 0, py::arg("dx") = 0, py::arg("dweight") = 0, py::arg("dbias") = 0)
      .def("bytes", &Engine::linear_bytes)
      .def("run", &linear);
  py::class_<ReadoutCall>(module, "ReadoutCall", py::module_local())
      .def(py::init(&make_readout), py::kw_only(), py::arg("dtype"), py::arg("tf32"), py::arg("rows"),
           py::arg("hidden_size"), py::arg("classes"), py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("targets"), py::arg("ignore_index"), py::arg("reduction"), py::arg("loss"), py::arg("normalizers"))
      .def("differentiated", &differentiated)
      .def("bytes", &Engine::readout_bytes)
      .def("forward", [](ReadoutCall& call, int device, Address stream,
                         Address workspace) { readout_forward(device, stream, call, workspace); })
      .def("backward", [](ReadoutCall& call, int device, Address stream, Address workspace) {
        readout_backward(device, stream, call, workspace);
      });
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
