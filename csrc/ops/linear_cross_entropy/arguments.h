// Arguments of the softmax cross-entropy readout; see csrc/ops/linear_cross_entropy/kernel.h.
#pragma once
#include "ops/linear/arguments.h"

namespace fusedrnn {

template <class Real>
struct CrossEntropyArguments : LinearArguments<Real> {  // without y and dy; the products are logits, outputs classes
  const std::int64_t* targets;                          // (rows,) in [0, classes), or negative: ignored
  Real* losses;                                         // forward, written: (rows,); 0 where ignored
  // (rows,) each; forward writes them, backward reads them. Their sum is log(sum of exp(logits)); it is not kept,
  // because at large logits its rounding alone would be an error of the loss.
  Real* maximum;      // of the logits
  Real* log_sum;      // log of the sum of exp(logits - maximum)
  const Real* scale;  // backward: (rows,) gradient of each row's loss
};

// Plans the chunks, allocates the scratch and runs the kernels on at most `threads` threads; sizes and pointers to the
// caller's arrays are set. Both return false when interrupted.
template <class Real>
bool run_cross_entropy_forward(CrossEntropyArguments<Real> arguments, int threads, const Interrupt& interrupt);
template <class Real>
bool run_cross_entropy_backward(CrossEntropyArguments<Real> arguments, int threads, const Interrupt& interrupt);

}  // namespace fusedrnn
