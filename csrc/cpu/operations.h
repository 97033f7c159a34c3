// What one build of the engine offers of operations. Apart from kernels.h, whose readers need not know of them: a new
// operation compiles no recurrence again.
#pragma once
#include "cpu/runtime/worker.h"
#include "ops/registry.h"

namespace fusedrnn {

template <class Arguments>
struct OperationKernels {
  void (*forward)(const Arguments& arguments, Worker& worker);
  void (*backward)(const Arguments& arguments, Worker& worker);
};

// Each operation's, by its name.
template <class T>
struct Operations {
#define FUSEDRNN_OPERATION(name, Name) OperationKernels<Name##Arguments<T>> name;
  FUSEDRNN_FOR_EACH_OPERATION(FUSEDRNN_OPERATION)
#undef FUSEDRNN_OPERATION
};

}  // namespace fusedrnn
