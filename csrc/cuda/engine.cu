// The engine's functions: which instance a type of numbers has, and what is of no type.
#include "cells/registry.h"
#include "cuda/engine.h"
#include "cuda/instance.h"
#include "cuda/runtime/backend.h"
#include "cuda/stepwise/clip.h"

namespace fusedrnn {
namespace {

// Calls f with an Instance of the type.
template <class Function>
auto with_instance(Type type, const Function& f) {
  switch (type) {
    case Type::float64:
      return f(Instance<double>());
    case Type::bfloat16:
      return f(Instance<Bfloat16>());
    case Type::float16:
      return f(Instance<Float16>());
    default:
      return f(Instance<float>());
  }
}

}  // namespace

std::vector<CellTraits> Engine::cells() {
  std::vector<CellTraits> traits;
#define FUSEDRNN_TRAITS_OF(...) traits.push_back(__VA_ARGS__::traits);
  FUSEDRNN_FOR_EACH_CELL(FUSEDRNN_TRAITS_OF)
#undef FUSEDRNN_TRAITS_OF
  return traits;
}

const char* Engine::persistent_refusal(const NetConfig& config, Index rows, bool training, bool at_once) {
  return with_instance(config.type,
                       [&](auto instance) { return instance.persistent_refusal(config, rows, training, at_once); });
}
std::size_t Engine::kept_bytes(const NetConfig& config, const NetForward& call) {
  return with_instance(config.type, [&](auto instance) { return instance.kept_bytes(config, call); });
}
std::size_t Engine::forward_bytes(const NetConfig& config, const NetForward& call) {
  return with_instance(config.type, [&](auto instance) { return instance.forward_bytes(config, call); });
}
std::size_t Engine::backward_bytes(const NetConfig& config, const NetForward& call) {
  return with_instance(config.type, [&](auto instance) { return instance.backward_bytes(config, call); });
}
void Engine::forward(const Place& place, const NetConfig& config, const NetForward& call) {
  with_instance(config.type, [&](auto instance) { instance.forward(place, config, call); });
}
void Engine::backward(const Place& place, const NetConfig& config, const NetForward& call,
                      const NetBackward& gradient) {
  with_instance(config.type, [&](auto instance) { instance.backward(place, config, call, gradient); });
}
std::size_t Engine::linear_bytes(const LinearCall& call) {
  return with_instance(call.type, [&](auto instance) { return instance.linear_bytes(call); });
}
void Engine::linear(const Place& place, const LinearCall& call) {
  with_instance(call.type, [&](auto instance) { instance.linear(place, call); });
}
std::size_t Engine::readout_bytes(const ReadoutCall& call) {
  return with_instance(call.type, [&](auto instance) { return instance.readout_bytes(call); });
}
void Engine::readout_forward(const Place& place, const ReadoutCall& call) {
  with_instance(call.type, [&](auto instance) { instance.readout_forward(place, call); });
}
void Engine::readout_backward(const Place& place, const ReadoutCall& call) {
  with_instance(call.type, [&](auto instance) { instance.readout_backward(place, call); });
}

std::size_t Engine::clip_bytes(Index arrays) { return (arrays * kNormParts + kParts) * sizeof(double); }
void Engine::clip(const Place& place, const std::vector<ClippedArray>& arrays, double limit, double* norm,
                  void* workspace) {
  double* const partial = static_cast<double*>(workspace);
  const Index count = static_cast<Index>(arrays.size()) * kNormParts;
  for (std::size_t i = 0; i < arrays.size(); ++i)
    with_instance(arrays[i].type,
                  [&](auto instance) { instance.add_squares(place, arrays[i], partial + Index(i) * kNormParts); });
  Backend backend(place, nullptr, false);
  backend.for_each(1, 1, kParts, JoinSquares{partial, count, kParts, partial + count});
  backend.for_each(1, 1, 1, JoinSquares{partial + count, kParts, 1, norm});
  for (const ClippedArray& array : arrays)
    with_instance(array.type, [&](auto instance) { instance.scale(place, array, norm, limit); });
}

#ifdef FUSEDRNN_CUDA_HOST
bool host_reversed = false, host_capturing = false;
Index host_chunk_bytes = 0, host_block_bytes = 0;
const char* Engine::name() { return "host"; }
int Engine::multiprocessors(int) { return 132; }
bool Engine::capturing(const Place&) { return host_capturing; }
#else
const char* Engine::name() { return "cuda"; }
int Engine::multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}
bool Engine::capturing(const Place& place) {
  const OnDevice device(place.device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(place.stream), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}
#endif

}  // namespace fusedrnn
