// The operations, compiled like the recurrences of instance.cu beside this. A file of its own, because an edit of an
// operation would otherwise compile every recurrence again.
#define FUSEDRNN_CUDA_OPERATIONS
#include "cuda/kernels.h"
#include "cuda/operations.h"

namespace fusedrnn {
namespace {

using T = FUSEDRNN_NUMBER;

template <class Operation, class Call>
std::size_t bytes(const Call& call) {
  return Operation(call).workspace_bytes();
}
template <class Operation, class Call>
void forward(const Place& place, const Call& call) {
  Operation(call).forward(place);
}
template <class Operation, class Call>
void backward(const Place& place, const Call& call) {
  Operation(call).backward(place);
}

#define FUSEDRNN_DEVICE_OPERATION(name, Name) \
  {bytes<Name<T>, Name##Call>, forward<Name<T>, Name##Call>, backward<Name<T>, Name##Call>},
const DeviceOperations operations = {FUSEDRNN_FOR_EACH_DEVICE_OPERATION(FUSEDRNN_DEVICE_OPERATION)};

}  // namespace

template <>
const DeviceOperations& table_of_number<DeviceOperations, T>() {
  return operations;
}

}  // namespace fusedrnn
