// Arguments of writing a patch through a grid of Gaussians; see kernel.h beside this.
#pragma once
#include "ops/gaussian_read/arguments.h"

namespace fusedrnn {

template <class Real>
struct GaussianWriteArguments : GaussianArguments<Real> {
  const Real* patch;   // (rows, channels, count, count)
  Real* image;         // forward, written: (rows, channels, height, width)
  const Real* dimage;  // backward
  Real* dpatch;        // backward, written
};

}  // namespace fusedrnn
