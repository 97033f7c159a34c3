// Arguments of writing a patch through a grid of Gaussians; see kernel.h beside this for the CPU,
// kernel.cuh for a device.
#pragma once
#include "ops/gaussian_read/arguments.h"

namespace fusedrnn {

// On the CPU.
template <class Real>
struct GaussianWriteArguments : GaussianArguments<Real> {
  const Real* patch;   // (rows, channels, count, count)
  Real* image;         // forward, written: (rows, channels, height, width)
  const Real* dimage;  // backward
  Real* dpatch;        // backward, written
};

// On a device.
struct GaussianWriteCall : GaussianCall {
  const void* patch;
  void* image;
  const void* dimage;
  void* dpatch;

  template <class Visit>
  void each_field(const Visit& visit) {
    each_shared_field(visit);
    visit("patch", patch);
    visit("image", image);
    visit("dimage", dimage);
    visit("dpatch", dpatch);
  }
};

}  // namespace fusedrnn
