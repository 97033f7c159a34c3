// Which pixels a point of the grid takes, with what weights: a chunk of points at a time, for all channels of an image.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/arguments.h"
#include "ops/grid_sample/arguments.h"
#include "ops/grid_sample/axis.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kChunk = 256;  // points

// Which of the four pixels of a point lie in the image.
constexpr int kAll = 15, kUpperLeft = 1;
constexpr int kNotFinite = 16;  // none of them, and the result is nan

// The loops of this are over arrays, and for all paddings and interpolations without a branch but `reflect`'s, so that
// the compiler makes vectors of them.
template <class Real>
struct Taps {
  int count;
  Index at[kChunk];                  // of the upper left pixel, which may lie outside
  Real right[kChunk], down[kChunk];  // how far towards the right and lower ones
  Real x_slope[kChunk], y_slope[kChunk];
  int has[kChunk];  // bit 0: upper left, 1: upper right, 2: lower left, 3: lower right

  // Of the points [first, first + count) of `grid`.
  void read(const GridSampleArguments<Real>& a, const Real* grid, Index first, int points) {
    Real x[kChunk], y[kChunk];
    int numbers = 0;
    count = points;
    for (int p = 0; p < count; ++p) {
      x[p] = grid[(first + p) * 2];
      y[p] = grid[(first + p) * 2 + 1];
      numbers += x[p] - x[p] == 0 && y[p] - y[p] == 0;
    }
    if (a.padding == Padding::zeros)
      place<Padding::zeros>(a, x, y);
    else if (a.padding == Padding::border)
      place<Padding::border>(a, x, y);
    else
      place<Padding::reflection>(a, x, y);
    if (a.interpolation == Interpolation::bilinear)
      split<true>(a);
    else
      split<false>(a);
    for (int p = 0; numbers < count && p < count; ++p)
      if (x[p] - x[p] != 0 || y[p] - y[p] != 0) set_nan(p, a.interpolation);
  }

 private:
  // Where the points lie; `right` and `down` hold that until they are split.
  template <Padding kPadding>
  void place(const GridSampleArguments<Real>& a, const Real* x, const Real* y) {
    place<kPadding>(Axis<Real>(a.width, a.align_corners), x, right, x_slope);
    place<kPadding>(Axis<Real>(a.height, a.align_corners), y, down, y_slope);
  }
  template <Padding kPadding>
  void place(const Axis<Real> axis, const Real* values, Real* to, Real* slope) const {
    for (int p = 0; p < count; ++p) axis.place(values[p], to[p], slope[p]);
    if constexpr (kPadding == Padding::zeros)
      for (int p = 0; p < count; ++p) axis.bound(to[p]);
    if constexpr (kPadding == Padding::reflection)
      for (int p = 0; p < count; ++p) axis.reflect(to[p], slope[p]);
    if constexpr (kPadding != Padding::zeros)
      for (int p = 0; p < count; ++p) axis.clip(to[p], slope[p]);
  }

  // Into a pixel and how far it is from there on. The nearest pixel is alone.
  template <bool kBilinear>
  void split(const GridSampleArguments<Real>& a) {
    // Of float32 numbers pixels are told apart up to 2^24 only; int converts in vectors.
    using Whole = std::conditional_t<sizeof(Real) == 4, std::int32_t, std::int64_t>;
    const Index width = a.width, last_column = a.width - 1, last_line = a.height - 1;
    for (int p = 0; p < count; ++p) {
      const Real left = kBilinear ? whole(right[p]) : nearest(right[p]),
                 top = kBilinear ? whole(down[p]) : nearest(down[p]);
      const Index column = static_cast<Whole>(left), line = static_cast<Whole>(top);
      const int first_column = (column >= 0) & (column <= last_column), first_line = (line >= 0) & (line <= last_line);
      const int next_column = kBilinear & (column >= -1) & (column < last_column);
      const int next_line = kBilinear & (line >= -1) & (line < last_line);
      at[p] = line * width + column;
      has[p] = (first_line & first_column) | (first_line & next_column) << 1 | (next_line & first_column) << 2 |
               (next_line & next_column) << 3;
      right[p] = kBilinear ? right[p] - left : Real(0);
      down[p] = kBilinear ? down[p] - top : Real(0);
      if (!kBilinear) x_slope[p] = y_slope[p] = 0;
    }
  }

  void set_nan(int p, Interpolation interpolation) {
    const Real nan = Real(__builtin_nan(""));
    has[p] = kNotFinite;
    at[p] = 0;
    right[p] = down[p] = nan;
    x_slope[p] = y_slope[p] = interpolation == Interpolation::bilinear ? nan : Real(0);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
