// What one build of the device engine, for one type of numbers, offers of operations: compiled once for each,
// operations.cu. A table of its own, because a new operation would otherwise compile every recurrence again.
#pragma once
#include <cstddef>

#include "cuda/engine.h"
#include "ops/registry.h"

namespace fusedrnn {

template <class Call>
struct DeviceOperation {
  std::size_t (*bytes)(const Call& call);  // of the workspace
  void (*forward)(const Place& place, const Call& call);
  void (*backward)(const Place& place, const Call& call);
};

// Each operation's, by its name.
struct DeviceOperations {
#define FUSEDRNN_OPERATION(name, Name) DeviceOperation<Name##Call> name;
  FUSEDRNN_FOR_EACH_DEVICE_OPERATION(FUSEDRNN_OPERATION)
#undef FUSEDRNN_OPERATION
};

}  // namespace fusedrnn
