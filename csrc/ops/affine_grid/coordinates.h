// Where the pixels of an image lie between -1 and 1, for the CPU.
#pragma once
#include "cpu/runtime/pool.h"
#include "ops/affine_grid/arguments.h"
#include "ops/affine_grid/middle.h"

namespace fusedrnn {

// The coordinates of the pixels; they live as long as this.
template <class Real>
struct Coordinates {
  Buffer x, y;
  Coordinates(AffineGridArguments<Real>& a, bool align_corners)
      : x(static_cast<std::size_t>(2 * a.width) * sizeof(Real)), y(static_cast<std::size_t>(a.height) * sizeof(Real)) {
    for (Index j = 0; j < 2 * a.width; ++j) x.as<Real>()[j] = middle<Real>(j / 2, a.width, align_corners);
    for (Index i = 0; i < a.height; ++i) y.as<Real>()[i] = middle<Real>(i, a.height, align_corners);
    a.x = x.as<Real>();
    a.y = y.as<Real>();
  }
};

}  // namespace fusedrnn
