// What one build of the device engine, for one type of numbers, offers to the rest: compiled once for each,
// instance.cu.
#pragma once
#include "common/number.h"
#include "cuda/engine.h"
#include "ops/registry.h"

namespace fusedrnn {

template <class Call>
struct DeviceOperation {
  std::size_t (*bytes)(const Call& call);  // of the workspace
  void (*forward)(const Place& place, const Call& call);
  void (*backward)(const Place& place, const Call& call);
};

struct DeviceKernels {
  // Null, or why the block programs do not run such calls; see block_program.h. `at_once`: with all steps in one
  // kernel.
  const char* (*persistent_refusal)(const NetConfig& config, Index rows, bool training, bool at_once);
  std::size_t (*kept_bytes)(const NetConfig& config, const NetForward& call);
  std::size_t (*forward_bytes)(const NetConfig& config, const NetForward& call);
  std::size_t (*backward_bytes)(const NetConfig& config, const NetForward& call);
  void (*forward)(const Place& place, const NetConfig& config, const NetForward& call);
  void (*backward)(const Place& place, const NetConfig& config, const NetForward& call, const NetBackward& gradient);
  // Parts of Engine::clip.
  void (*add_squares)(const Place& place, const ClippedArray& array, double* partial);
  void (*scale)(const Place& place, const ClippedArray& array, const double* norm, double limit);
  // Each operation's, by its name.
#define FUSEDRNN_OPERATION(name, Name) DeviceOperation<Name##Call> name;
  FUSEDRNN_FOR_EACH_DEVICE_OPERATION(FUSEDRNN_OPERATION)
#undef FUSEDRNN_OPERATION
};

template <class T>
const DeviceKernels& kernels_of_number();
const DeviceKernels& device_kernels(Type type);

}  // namespace fusedrnn
