// Arguments of sampling an image at the points of a grid; see kernel.h beside this.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {

enum class Interpolation { bilinear, nearest };
enum class Padding { zeros, border, reflection };

template <class Real>
struct GridSampleArguments {
  Index images, channels, height, width;
  Index points;  // of one image
  Interpolation interpolation;
  Padding padding;
  bool align_corners;
  const Real* input;  // (images, channels, height, width)
  const Real* grid;   // (images, points, 2): x, y
  Real* out;          // forward, written: (images, channels, points)
  const Real* dout;   // backward
  Real* dinput;       // backward, written
  Real* dgrid;        // backward, written
};

}  // namespace fusedrnn
