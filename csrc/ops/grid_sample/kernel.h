// Sampling at the points of a grid, and its gradients. Of a point all is computed by one thread in one order, and so is
// all of a plane (one channel of one image), which takes the points in their order.
#pragma once
#include "cpu/runtime/worker.h"
#include "ops/grid_sample/taps.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class GridSample {
 public:
  GridSample(const GridSampleArguments<Real>& arguments, Worker& worker)
      : a(arguments), w(worker), plane_(arguments.height * arguments.width) {}

  void forward() {
    each_chunk([this](Index image, Index first) {
      for (Index c = image * a.channels; c < (image + 1) * a.channels; ++c)
        sample(a.input + c * plane_, a.out + c * a.points + first);
    });
  }

  void backward() {
    scatter();
    each_chunk([this](Index image, Index first) { grid_gradient(image, first); });
  }

 private:
  const GridSampleArguments<Real>& a;
  Worker& w;
  const Index plane_;
  Taps<Real> taps;

  static constexpr Index kWorkOfAPoint = 4;

  template <class Chunk>
  void each_chunk(const Chunk& chunk) {
    const Index chunks = (a.points + kChunk - 1) / kChunk;
    const Range mine = part_of(a.images * chunks, w.thread, w.threads());
    for (Index n = mine.first; n < mine.last && !w.skip(kChunk * kWorkOfAPoint * a.channels); ++n) {
      const Index image = n / chunks, first = n % chunks * kChunk;
      read(image, first);
      chunk(image, first);
    }
  }
  void read(Index image, Index first) {
    taps.read(a, a.grid + image * a.points * 2, first, static_cast<int>(smaller(kChunk, a.points - first)));
  }

  FUSEDRNN_INLINE Real pixel(const Real* upper, int p, int corner) const {
    return taps.has[p] & 1 << corner ? upper[(corner & 1) + (corner >> 1) * a.width] : Real(0);
  }
  FUSEDRNN_INLINE Real weight(int p, int corner) const {
    return (corner & 1 ? taps.right[p] : 1 - taps.right[p]) * (corner & 2 ? taps.down[p] : 1 - taps.down[p]);
  }

  void sample(const Real* plane, Real* out) const {
    if (taps.inside) {
      for (int p = 0; p < taps.count; ++p) {
        const Real *upper = plane + taps.at[p], *lower = upper + a.width;
        out[p] = upper[0] * weight(p, 0) + upper[1] * weight(p, 1) + lower[0] * weight(p, 2) + lower[1] * weight(p, 3);
      }
      return;
    }
    for (int p = 0; p < taps.count; ++p) {
      Real sum = taps.has[p] == kNotFinite ? taps.right[p] : Real(0);
      // A pixel outside is not 0 times something: it is not there.
      for (int corner = 0; corner < 4; ++corner)
        if (taps.has[p] & 1 << corner) sum += pixel(plane + taps.at[p], p, corner) * weight(p, corner);
      out[p] = sum;
    }
  }

  // dinput: planes of one image take their points from the same taps.
  void scatter() {
    const Range mine = part_of(a.images * a.channels, w.thread, w.threads());
    for (Index c = mine.first; c < mine.last;) {
      const Index image = c / a.channels, end = smaller(mine.last, (image + 1) * a.channels);
      for (Index i = c * plane_; i < end * plane_; ++i) a.dinput[i] = 0;
      for (Index first = 0; first < a.points; first += kChunk) {
        if (w.skip(kChunk * kWorkOfAPoint * (end - c))) return;
        read(image, first);
        for (Index plane = c; plane < end; ++plane) add(a.dout + plane * a.points + first, a.dinput + plane * plane_);
      }
      c = end;
    }
  }
  void add(const Real* dout, Real* plane) const {
    if (taps.inside) {
      for (int p = 0; p < taps.count; ++p) {
        Real *upper = plane + taps.at[p], *lower = upper + a.width;
        upper[0] += dout[p] * weight(p, 0);
        upper[1] += dout[p] * weight(p, 1);
        lower[0] += dout[p] * weight(p, 2);
        lower[1] += dout[p] * weight(p, 3);
      }
      return;
    }
    for (int p = 0; p < taps.count; ++p)
      for (int corner = 0; corner < 4; ++corner)
        if (taps.has[p] & 1 << corner)
          plane[taps.at[p] + (corner & 1) + (corner >> 1) * a.width] += dout[p] * weight(p, corner);
  }

  void grid_gradient(Index image, Index first) const {
    Real x[kChunk], y[kChunk];
    for (int p = 0; p < taps.count; ++p) x[p] = y[p] = 0;
    for (Index c = image * a.channels; c < (image + 1) * a.channels; ++c)
      add_slopes(a.input + c * plane_, a.dout + c * a.points + first, x, y);
    Real* dgrid = a.dgrid + (image * a.points + first) * 2;
    for (int p = 0; p < taps.count; ++p) {
      dgrid[2 * p] = slope_times(taps.x_slope[p], x[p]);
      dgrid[2 * p + 1] = slope_times(taps.y_slope[p], y[p]);
    }
  }
  // Where the coordinate has no influence it has none on a nan or an infinity either.
  static FUSEDRNN_INLINE Real slope_times(Real slope, Real gradient) { return slope == 0 ? Real(0) : slope * gradient; }

  // Adds a channel's derivative of each point by its column and line, times its gradient.
  void add_slopes(const Real* plane, const Real* dout, Real* x, Real* y) const {
    if (taps.inside) {
      for (int p = 0; p < taps.count; ++p) {
        const Real *upper = plane + taps.at[p], *lower = upper + a.width;
        slopes(dout[p], p, upper[0], upper[1], lower[0], lower[1], x[p], y[p]);
      }
      return;
    }
    for (int p = 0; p < taps.count; ++p) {
      const Real* upper = plane + taps.at[p];
      slopes(dout[p], p, pixel(upper, p, 0), pixel(upper, p, 1), pixel(upper, p, 2), pixel(upper, p, 3), x[p], y[p]);
    }
  }
  FUSEDRNN_INLINE void slopes(Real dout, int p, Real upper_left, Real upper_right, Real lower_left, Real lower_right,
                              Real& x, Real& y) const {
    const Real right = taps.right[p], down = taps.down[p];
    x += dout * ((upper_right - upper_left) * (1 - down) + (lower_right - lower_left) * down);
    y += dout * ((lower_left - upper_left) * (1 - right) + (lower_right - upper_right) * right);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
