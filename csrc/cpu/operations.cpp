// The engine's operations, compiled once for each instruction set and floating-point type, under the rules of
// engine.cpp beside this. A file of its own, because an edit of an operation would otherwise compile every recurrence
// again.
#define FUSEDRNN_CPU_OPERATIONS
#include "cpu/operations.h"

#include "cpu/kernels.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

using T = FUSEDRNN_REAL;

template <class Operation, class Arguments>
void forward(const Arguments& arguments, Worker& worker) {
  Operation(arguments, worker).forward();
}
template <class Operation, class Arguments>
void backward(const Arguments& arguments, Worker& worker) {
  Operation(arguments, worker).backward();
}

#define FUSEDRNN_OPERATION_KERNELS(name, Name) \
  {forward<Name<T>, Name##Arguments<T>>, backward<Name<T>, Name##Arguments<T>>},
const Operations<T> operations = {FUSEDRNN_FOR_EACH_OPERATION(FUSEDRNN_OPERATION_KERNELS)};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME

const Operations<T>& FUSEDRNN_OF_BUILD(operations, FUSEDRNN_ISA_NAME, FUSEDRNN_REAL)() { return operations; }

}  // namespace fusedrnn
