// Arguments of the softmax over rows; see csrc/ops/softmax/kernel.h.
#pragma once
#include "common/arguments.h"
#include "cpu/runtime/parallel.h"

namespace fusedrnn {

// All arrays (rows, columns), contiguous.
template <class Real>
struct SoftmaxArguments {
  Index rows, columns;
  const Real* x;   // forward
  const Real* y;   // backward: what forward wrote
  const Real* dy;  // backward
  Real* out;       // y forward, dx backward
};

// Both run on at most `threads` threads and return false when interrupted.
template <class Real>
bool run_softmax_forward(const SoftmaxArguments<Real>& arguments, int threads, const Interrupt& interrupt);
template <class Real>
bool run_softmax_backward(const SoftmaxArguments<Real>& arguments, int threads, const Interrupt& interrupt);

}  // namespace fusedrnn
