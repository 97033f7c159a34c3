// Which pixels a point of the grid takes, with what weights: a chunk of points at a time, for all channels of an image.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/arguments.h"
#include "cpu/simd/vec.h"
#include "ops/grid_sample/arguments.h"
#include "ops/grid_sample/axis.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kChunk = 256;  // points

// Which of the four pixels of a point lie in the image.
constexpr int kUpperLeft = 1, kUpperRight = 2, kLowerLeft = 4, kLowerRight = 8, kAll = 15;
constexpr int kNotFinite = 16;  // none of them, and the result is nan

// The loops of this are over arrays, and for all paddings and interpolations without a branch but `reflect`'s, so that
// the compiler makes vectors of them.
template <class Real>
struct Taps {
  // Of float32 numbers pixels are told apart up to 2^24 only; int converts in vectors.
  using Whole = std::conditional_t<sizeof(Real) == 4, std::int32_t, std::int64_t>;

  int count;
  // Of the pairs of pixels on the upper and on the lower line: the left pixel's number. The pair lies in the plane,
  // except at corners. Of a point without a pixel it is 0.
  Index upper[kChunk], lower[kChunk];
  Real right[kChunk], down[kChunk];  // how far towards the right and lower pixels
  Real x_slope[kChunk], y_slope[kChunk];
  Whole has[kChunk];
  // Corners: one of their pairs has a pixel outside the plane, so that it cannot be loaded. They have no pixels above.
  int corners, corner[kChunk];
  Whole corner_has[kChunk];
  Index corner_upper[kChunk], corner_lower[kChunk];
  bool any, all;  // whether any of the other points has a pixel, and whether all have all four

  // Of the points [first, first + points) of `grid`.
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
    corners = 0;
    if (a.interpolation == Interpolation::bilinear) {
      split<true>(a);
      find_corners(a.height * a.width);
    } else {
      split<false>(a);
    }
    for (int p = 0; numbers < count && p < count; ++p)
      if (x[p] - x[p] != 0 || y[p] - y[p] != 0) set_nan(p, a.interpolation);
    fill();
  }
  // Whether neighbours among the points lie on other lines.
  bool turned(Index width) const {
    const Index far = upper[smaller(count, Vec<Real>::lanes) - 1] - upper[0];
    return far >= width || far <= -width;
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
    const Whole last_column = static_cast<Whole>(a.width - 1), last_line = static_cast<Whole>(a.height - 1);
    const Index width = a.width;
    for (int p = 0; p < count; ++p) {
      const Real left = kBilinear ? whole(right[p]) : nearest(right[p]),
                 top = kBilinear ? whole(down[p]) : nearest(down[p]);
      const Whole column = static_cast<Whole>(left), line = static_cast<Whole>(top);
      const Whole first_column = (column >= 0) & (column <= last_column),
                  first_line = (line >= 0) & (line <= last_line);
      const Whole next_column = kBilinear & (column >= -1) & (column < last_column);
      const Whole next_line = kBilinear & (line >= -1) & (line < last_line);
      const Whole in_lines = (first_line | next_line) & (first_column | next_column);
      has[p] = (first_line & first_column) | (first_line & next_column) << 1 | (next_line & first_column) << 2 |
               (next_line & next_column) << 3;
      const Whole upper_line = line < 0 ? 0 : line, lower_line = line < last_line ? line + 1 : last_line;
      upper[p] = in_lines ? upper_line * width + column : 0;
      lower[p] = in_lines ? lower_line * width + column : 0;
      right[p] = kBilinear ? right[p] - left : Real(0);
      down[p] = kBilinear ? down[p] - top : Real(0);
      if (!kBilinear) x_slope[p] = y_slope[p] = 0;
    }
  }

  void find_corners(Index plane) {
    const auto is_corner = [&](int p) {
      return (has[p] != 0) & ((upper[p] < 0) | (lower[p] < 0) | (upper[p] > plane - 2) | (lower[p] > plane - 2));
    };
    int found = 0;
    for (int p = 0; p < count; ++p) found += is_corner(p);
    for (int p = 0; corners < found && p < count; ++p) {
      if (!is_corner(p)) continue;
      corner[corners] = p;
      corner_has[corners] = has[p];
      corner_upper[corners] = upper[p];
      corner_lower[corners++] = lower[p];
      has[p] = 0;
      upper[p] = lower[p] = 0;
    }
  }

  void set_nan(int p, Interpolation interpolation) {
    const Real nan = Real(__builtin_nan(""));
    has[p] = kNotFinite;
    upper[p] = lower[p] = 0;
    right[p] = down[p] = nan;
    x_slope[p] = y_slope[p] = interpolation == Interpolation::bilinear ? nan : Real(0);
  }

  // Points without a pixel, up to a whole number of registers.
  void fill() {
    Whole some = 0, every = kAll;
    for (int p = 0; p < count; ++p) {
      some |= has[p];
      every &= has[p];
    }
    any = (some & kAll) != 0;
    all = every == kAll;
    for (int p = count; p % Vec<Real>::lanes != 0; ++p) {
      upper[p] = lower[p] = 0;
      right[p] = down[p] = 0;
      has[p] = 0;
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
