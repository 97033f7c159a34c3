// Compiled once for each FUSEDRNN_NUMBER: by nvcc for the module _cuda, as plain C++ for the host build of the tests.
#include "cuda/instance.h"
#include "cuda/stepwise/backward.h"
#include "cuda/stepwise/clip.h"
#include "cuda/stepwise/forward.h"
#include "ops/linear_cross_entropy/kernel.cuh"

namespace fusedrnn {

template <class T>
const char* Instance<T>::persistent_refusal(const NetConfig& config, Index rows, bool training, bool at_once) {
  return BlockProgram<T>::refusal(config, cell_steps<T>(config.cell).traits.name, rows, training, at_once);
}
template <class T>
std::size_t Instance<T>::kept_bytes(const NetConfig& config, const NetForward& call) {
  return Forward<T>(config, call).kept_bytes();
}
template <class T>
std::size_t Instance<T>::forward_bytes(const NetConfig& config, const NetForward& call) {
  return Forward<T>(config, call).workspace_bytes();
}
template <class T>
std::size_t Instance<T>::backward_bytes(const NetConfig& config, const NetForward& call) {
  return Backward<T>(config, call).workspace_bytes();
}
template <class T>
void Instance<T>::forward(const Place& place, const NetConfig& config, const NetForward& call) {
  Forward<T>(config, call).run(place);
}
template <class T>
void Instance<T>::backward(const Place& place, const NetConfig& config, const NetForward& call,
                           const NetBackward& gradient) {
  Backward<T>(config, call).run(place, gradient);
}
template <class T>
std::size_t Instance<T>::linear_bytes(const LinearCall& call) {
  return Linear<T>(call).workspace_bytes();
}
template <class T>
void Instance<T>::linear(const Place& place, const LinearCall& call) {
  Linear<T>(call).run(place);
}
template <class T>
std::size_t Instance<T>::readout_bytes(const ReadoutCall& call) {
  return Readout<T>(call).workspace_bytes();
}
template <class T>
void Instance<T>::readout_forward(const Place& place, const ReadoutCall& call) {
  Readout<T>(call).forward(place);
}
template <class T>
void Instance<T>::readout_backward(const Place& place, const ReadoutCall& call) {
  Readout<T>(call).backward(place);
}
template <class T>
void Instance<T>::add_squares(const Place& place, const ClippedArray& array, double* partial) {
  Backend(place, nullptr, false)
      .for_each(1, 1, kNormParts, SquaresPart<T>{static_cast<const T*>(array.data), array.size, partial});
}
template <class T>
void Instance<T>::scale(const Place& place, const ClippedArray& array, const double* norm, double limit) {
  Backend(place, nullptr, false).for_each(1, 1, array.size, Scale<T>{static_cast<T*>(array.data), norm, limit});
}

template struct Instance<FUSEDRNN_NUMBER>;

}  // namespace fusedrnn
