// Arguments of the softmax over rows; see kernel.h beside this.
#pragma once
#include "common/arguments.h"

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

}  // namespace fusedrnn
