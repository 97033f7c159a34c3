// Which pixels a point of the grid takes, with what weights: a chunk of points at a time, for all channels of an image.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/arguments.h"
#include "ops/grid_sample/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

inline float whole(float x) { return __builtin_floorf(x); }
inline double whole(double x) { return __builtin_floor(x); }
inline float nearest(float x) { return __builtin_rintf(x); }  // ties to even
inline double nearest(double x) { return __builtin_rint(x); }
inline float remainder_of(float x, float y) { return __builtin_fmodf(x, y); }
inline double remainder_of(double x, double y) { return __builtin_fmod(x, y); }

// How the coordinates of one axis become pixels.
template <class Real, Padding kPadding>
class Axis {
 public:
  Axis(const GridSampleArguments<Real>& a, Index size)
      : last_(static_cast<Real>(size - 1)),
        span_(static_cast<Real>(a.align_corners ? size - 1 : size)),
        scale_(span_ / 2),
        low_(a.align_corners ? Real(0) : Real(-0.5)) {}

  // Of `count` values that are finite: where they are in pixels, and the derivative of that. Where no pixel is near it
  // is at -2: the numbers of pixels stay small.
  void place(const Real* values, int count, Real* at, Real* slope) const {
    for (int p = 0; p < count; ++p) {
      at[p] = (values[p] + 1) * scale_ + low_;
      slope[p] = scale_;
    }
    if constexpr (kPadding == Padding::zeros)
      for (int p = 0; p < count; ++p) at[p] = (at[p] > Real(-2)) & (at[p] < last_ + 2) ? at[p] : Real(-2);
    if constexpr (kPadding == Padding::reflection) reflect(count, at, slope);
    if constexpr (kPadding != Padding::zeros) clip(count, at, slope);
  }

 private:
  const Real last_, span_, scale_, low_;

  // Beyond the outer pixels nothing changes.
  void clip(int count, Real* at, Real* slope) const {
    for (int p = 0; p < count; ++p) {
      const bool before = !(at[p] > 0), after = at[p] >= last_;
      slope[p] = before | after ? Real(0) : slope[p];
      at[p] = before ? Real(0) : after ? last_ : at[p];
    }
  }
  // Mirrored at the outer edges of the image, or the middles of the outer pixels, as often as it takes.
  void reflect(int count, Real* at, Real* slope) const {
    for (int p = 0; p < count; ++p) {
      if (at[p] >= low_ && at[p] < low_ + span_) continue;
      if (span_ == 0) {
        at[p] = slope[p] = 0;
        continue;
      }
      const bool below = at[p] < low_;
      const Real distance = below ? low_ - at[p] : at[p] - low_;
      // Of a number that large nothing is left but that it is even.
      const Real times = whole(distance / span_);
      const Real rest = distance - distance == 0 ? remainder_of(distance, span_) : Real(0);
      const bool odd = times - 2 * whole(times / 2) == 1;
      at[p] = odd ? span_ - rest + low_ : rest + low_;
      slope[p] = odd != below ? -slope[p] : slope[p];
    }
  }
};

constexpr int kChunk = 256;  // points

// Which of the four pixels of a point lie in the image.
constexpr int kAll = 15;
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
      split<true>(a, right, down);
    else
      split<false>(a, right, down);
    for (int p = 0; numbers < count && p < count; ++p)
      if (x[p] - x[p] != 0 || y[p] - y[p] != 0) set_nan(p, a.interpolation);
  }

 private:
  // Where the points lie; `right` and `down` hold that until they are split.
  template <Padding kPadding>
  void place(const GridSampleArguments<Real>& a, const Real* x, const Real* y) {
    Axis<Real, kPadding>(a, a.width).place(x, count, right, x_slope);
    Axis<Real, kPadding>(a, a.height).place(y, count, down, y_slope);
  }

  // Into a pixel and how far it is from there on. The nearest pixel is alone.
  template <bool kBilinear>
  void split(const GridSampleArguments<Real>& a, Real* x, Real* y) {
    // Of float32 numbers pixels are told apart up to 2^24 only; int converts in vectors.
    using Whole = std::conditional_t<sizeof(Real) == 4, std::int32_t, std::int64_t>;
    const Index width = a.width, last_column = a.width - 1, last_line = a.height - 1;
    for (int p = 0; p < count; ++p) {
      const Real left = kBilinear ? whole(x[p]) : nearest(x[p]), top = kBilinear ? whole(y[p]) : nearest(y[p]);
      const Index column = static_cast<Whole>(left), line = static_cast<Whole>(top);
      const int first_column = (column >= 0) & (column <= last_column), first_line = (line >= 0) & (line <= last_line);
      const int next_column = kBilinear & (column >= -1) & (column < last_column);
      const int next_line = kBilinear & (line >= -1) & (line < last_line);
      at[p] = line * width + column;
      has[p] = (first_line & first_column) | (first_line & next_column) << 1 | (next_line & first_column) << 2 |
               (next_line & next_column) << 3;
      x[p] = kBilinear ? x[p] - left : Real(0);
      y[p] = kBilinear ? y[p] - top : Real(0);
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
