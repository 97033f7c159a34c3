// Which table of kernels a type of numbers has, and what is of no type.
#include "cells/registry.h"
#include "cuda/kernels.h"
#include "cuda/operations.h"
#include "cuda/runtime/backend.h"
#include "cuda/stepwise/clip.h"

namespace fusedrnn {

template <class Table>
const Table& table_of(Type type) {
  switch (type) {
    case Type::float64:
      return table_of_number<Table, double>();
    case Type::bfloat16:
      return table_of_number<Table, Bfloat16>();
    case Type::float16:
      return table_of_number<Table, Float16>();
    default:
      return table_of_number<Table, float>();
  }
}
template const DeviceKernels& table_of(Type);
template const DeviceOperations& table_of(Type);

std::vector<CellTraits> Engine::cells() {
  std::vector<CellTraits> traits;
#define FUSEDRNN_TRAITS_OF(...) traits.push_back(__VA_ARGS__::traits);
  FUSEDRNN_FOR_EACH_CELL(FUSEDRNN_TRAITS_OF)
#undef FUSEDRNN_TRAITS_OF
  return traits;
}

std::size_t Engine::clip_bytes(Index arrays) { return (arrays * kNormParts + kParts) * sizeof(double); }
void Engine::clip(const Place& place, const std::vector<ClippedArray>& arrays, double limit, double* norm,
                  void* workspace) {
  double* const partial = static_cast<double*>(workspace);
  const Index count = static_cast<Index>(arrays.size()) * kNormParts;
  for (std::size_t i = 0; i < arrays.size(); ++i)
    table_of<DeviceKernels>(arrays[i].type).add_squares(place, arrays[i], partial + Index(i) * kNormParts);
  Backend backend(place, nullptr, false);
  backend.for_each(1, 1, kParts, JoinSquares{partial, count, kParts, partial + count});
  backend.for_each(1, 1, 1, JoinSquares{partial + count, kParts, 1, norm});
  for (const ClippedArray& array : arrays) table_of<DeviceKernels>(array.type).scale(place, array, norm, limit);
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
