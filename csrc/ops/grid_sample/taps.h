// Which pixels a point of the grid takes, with what weights: a chunk of points at a time, for all channels of an image.
#pragma once
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

// A coordinate in pixels, and its derivative by the grid's.
template <class Real>
struct Coordinate {
  Real at, slope;
};

// How the coordinates of one axis become pixels.
template <class Real>
class Axis {
 public:
  Axis(const GridSampleArguments<Real>& a, Index size)
      : padding_(a.padding),
        align_corners_(a.align_corners),
        last_(static_cast<Real>(size - 1)),
        scale_(static_cast<Real>(a.align_corners ? size - 1 : size) / 2),
        low_(a.align_corners ? Real(0) : Real(-0.5)),
        span_(static_cast<Real>(a.align_corners ? size - 1 : size)) {}

  // `value` is finite. Where no pixel is near, -2: the numbers of pixels stay small.
  FUSEDRNN_INLINE Coordinate<Real> of(Real value) const {
    Coordinate<Real> c = {(value + 1) * scale_ - (align_corners_ ? Real(0) : Real(0.5)), scale_};
    if (padding_ == Padding::zeros) {
      c.at = c.at > Real(-2) && c.at < last_ + 2 ? c.at : Real(-2);
      return c;
    }
    if (padding_ == Padding::reflection) c = reflected(c);
    return clipped(c);
  }

 private:
  Padding padding_;
  bool align_corners_;
  Real last_, scale_, low_, span_;

  // Beyond the outer pixels nothing changes.
  FUSEDRNN_INLINE Coordinate<Real> clipped(Coordinate<Real> c) const {
    if (!(c.at > 0)) return {0, 0};
    if (c.at >= last_) return {last_, 0};
    return c;
  }
  // Mirrored at the outer edges of the image, or the middles of the outer pixels, as often as it takes.
  FUSEDRNN_INLINE Coordinate<Real> reflected(Coordinate<Real> c) const {
    if (span_ == 0) return {0, 0};
    Real distance = c.at - low_;
    Real sign = 1;
    if (distance < 0) {
      distance = -distance;
      sign = -1;
    }
    // Of a number that large nothing is left but that it is even.
    const Real times = whole(distance / span_);
    const Real rest = distance - distance == 0 ? remainder_of(distance, span_) : Real(0);
    const bool odd = times - 2 * whole(times / 2) == 1;
    return odd ? Coordinate<Real>{span_ - rest + low_, -sign * c.slope} : Coordinate<Real>{rest + low_, sign * c.slope};
  }
};

constexpr int kChunk = 256;  // points

// Which of the four pixels of a point lie in the image.
constexpr unsigned char kAll = 15;
constexpr unsigned char kNotFinite = 16;  // none of them, and the result is nan

template <class Real>
struct Taps {
  int count;
  bool inside;                       // every point has all four pixels
  Index at[kChunk];                  // of the upper left pixel, which may lie outside
  Real right[kChunk], down[kChunk];  // how far towards the right and lower ones
  Real x_slope[kChunk], y_slope[kChunk];
  unsigned char has[kChunk];  // bit 0: upper left, 1: upper right, 2: lower left, 3: lower right

  // Of the points [first, first + count) of `grid`.
  void read(const GridSampleArguments<Real>& a, const Real* grid, Index first, int points) {
    const Axis<Real> x_axis(a, a.width), y_axis(a, a.height);
    count = points;
    unsigned char all = kAll;
    for (int p = 0; p < points; ++p) {
      const Real x = grid[(first + p) * 2], y = grid[(first + p) * 2 + 1];
      if (x - x != 0 || y - y != 0) {
        set_nan(p, a.interpolation);
      } else {
        set(a, p, x_axis.of(x), y_axis.of(y));
      }
      all &= has[p];
    }
    inside = all == kAll;
  }

 private:
  void set_nan(int p, Interpolation interpolation) {
    const Real nan = Real(__builtin_nan(""));
    has[p] = kNotFinite;
    at[p] = 0;
    right[p] = down[p] = nan;
    x_slope[p] = y_slope[p] = interpolation == Interpolation::bilinear ? nan : Real(0);
  }

  FUSEDRNN_INLINE void set(const GridSampleArguments<Real>& a, int p, Coordinate<Real> x, Coordinate<Real> y) {
    const bool bilinear = a.interpolation == Interpolation::bilinear;
    const Real left = bilinear ? whole(x.at) : nearest(x.at), top = bilinear ? whole(y.at) : nearest(y.at);
    const Index column = static_cast<Index>(left), line = static_cast<Index>(top);
    at[p] = line * a.width + column;
    right[p] = bilinear ? x.at - left : Real(0);
    down[p] = bilinear ? y.at - top : Real(0);
    x_slope[p] = bilinear ? x.slope : Real(0);
    y_slope[p] = bilinear ? y.slope : Real(0);
    const bool first_column = column >= 0 && column < a.width, first_line = line >= 0 && line < a.height;
    // The nearest pixel is alone.
    const bool next_column = bilinear && column >= -1 && column + 1 < a.width;
    const bool next_line = bilinear && line >= -1 && line + 1 < a.height;
    has[p] = static_cast<unsigned char>((first_line && first_column) | (first_line && next_column) << 1 |
                                        (next_line && first_column) << 2 | (next_line && next_column) << 3);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
