// Arguments of the affine grid; see kernel.h beside this for the CPU, kernel.cuh for a device.
#pragma once
#include "common/arguments.h"
#include "common/type.h"

namespace fusedrnn {

// On the CPU.
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

// On a device, whose arrays are of `type`. A null array is absent.
struct AffineGridCall {
  Type type;
  Index images, height, width;
  bool align_corners;
  const void* theta;
  void* grid;
  const void* dgrid;
  void* dtheta;
  void* workspace;

  template <class Visit>
  void each_field(const Visit& visit) {
    visit("dtype", type);
    visit("images", images);
    visit("height", height);
    visit("width", width);
    visit("align_corners", align_corners);
    visit("theta", theta);
    visit("grid", grid);
    visit("dgrid", dgrid);
    visit("dtheta", dtheta);
  }
};

}  // namespace fusedrnn
