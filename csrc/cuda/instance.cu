// The recurrences, compiled once for each FUSEDRNN_NUMBER: by nvcc for the module _cuda, as plain C++ for the host
// build of the tests.
#include "cuda/kernels.h"
#include "cuda/stepwise/backward.h"
#include "cuda/stepwise/clip.h"
#include "cuda/stepwise/decoder.h"
#include "cuda/stepwise/forward.h"

namespace fusedrnn {
namespace {

using T = FUSEDRNN_NUMBER;

const char* persistent_refusal(const NetConfig& config, Index rows, bool training, bool at_once) {
  return BlockProgram<T>::refusal(config, cell_steps<T>(config.cell).traits.name, rows, training, at_once);
}
std::size_t kept_bytes(const NetConfig& config, const NetForward& call) {
  return StepwiseForward<T>(config, call).kept_bytes();
}
std::size_t forward_bytes(const NetConfig& config, const NetForward& call) {
  return StepwiseForward<T>(config, call).workspace_bytes();
}
std::size_t backward_bytes(const NetConfig& config, const NetForward& call, bool norms) {
  return StepwiseBackward<T>(config, call, norms).workspace_bytes();
}
void forward(const Place& place, const NetConfig& config, const NetForward& call) {
  StepwiseForward<T>(config, call).run(place);
}
void backward(const Place& place, const NetConfig& config, const NetForward& call, const NetBackward& gradient) {
  StepwiseBackward<T>(config, call, gradient.norms[0].data != nullptr).run(place, gradient);
}

std::size_t decoder_bytes(const NetConfig& config, const NetForward& call, const AdditiveAttentionCall& attention,
                          bool backward) {
  AttentionInput<T> late(attention, backward);
  if (backward) return StepwiseBackward<T>(config, call, false, &late).workspace_bytes();
  return StepwiseForward<T>(config, call, &late).workspace_bytes();
}
void decoder_forward(const Place& place, const NetConfig& config, const NetForward& call,
                     const AdditiveAttentionCall& attention) {
  AttentionInput<T> late(attention, false);
  StepwiseForward<T>(config, call, &late).run(place);
}
void decoder_backward(const Place& place, const NetConfig& config, const NetForward& call,
                      const AdditiveAttentionCall& attention, const NetBackward& gradient) {
  AttentionInput<T> late(attention, true);
  StepwiseBackward<T>(config, call, false, &late).run(place, gradient);
}

void add_squares(const Place& place, const ClippedArray& array, double* partial) {
  Backend(place, nullptr, false)
      .for_each(1, 1, kNormParts, SquaresPart<T>{static_cast<const T*>(array.data), array.size, partial});
}
void scale(const Place& place, const ClippedArray& array, const double* norm, double limit) {
  Backend(place, nullptr, false).for_each(1, 1, array.size, Scale<T>{static_cast<T*>(array.data), norm, limit});
}

const DeviceKernels kernels = {persistent_refusal, kept_bytes,      forward_bytes,    backward_bytes, forward, backward,
                               decoder_bytes,      decoder_forward, decoder_backward, add_squares,    scale};

}  // namespace

template <>
const DeviceKernels& table_of_number<DeviceKernels, T>() {
  return kernels;
}

}  // namespace fusedrnn
