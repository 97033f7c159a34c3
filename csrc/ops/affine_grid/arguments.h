// Arguments of the affine grid; see kernel.h beside this.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {

template <class Real>
struct AffineGridArguments {
  Index images, height, width;
  const Real* x;      // (2 * width,) the x of every column, each twice
  const Real* y;      // (height,) the y of every line
  const Real* theta;  // forward: (images, 2, 3)
  Real* grid;         // forward, written: (images, height, width, 2)
  const Real* dgrid;  // backward: of the grid's shape
  Real* dtheta;       // backward, written: (images, 2, 3)
  Real* partial;      // backward, workspace: (images * height, 2, 3)
};

}  // namespace fusedrnn
