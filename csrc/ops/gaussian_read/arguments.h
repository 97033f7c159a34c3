// Arguments of reading an image through a grid of Gaussians; see kernel.h beside this.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {

// Of both ways: `image` is what the filters turn into a patch, or what they make of one.
template <class Real>
struct GaussianArguments {
  Index rows, channels, height, width, count;  // count: N, filters of each axis
  const Real* attention;                       // (rows, 5)
  Real* dattention;                            // backward, written: (rows, 5)
  Real* workspace;                             // (threads, workspace_of_thread)
  Index workspace_of_thread;

  // Elements of workspace for a thread; see bank.h.
  FUSEDRNN_INLINE static Index workspace_size(Index height, Index width, Index count) {
    return 5 * count * width + 3 * count * height + 2 * count * count;
  }
};

template <class Real>
struct GaussianReadArguments : GaussianArguments<Real> {
  const Real* image;   // (rows, channels, height, width)
  Real* patch;         // forward, written: (rows, channels, count, count)
  const Real* dpatch;  // backward
  Real* dimage;        // backward, written
};

}  // namespace fusedrnn
