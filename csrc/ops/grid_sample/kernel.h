// Sampling at the points of a grid, and its gradients. Of a point all is computed by one thread in one order, and so is
// all of a plane (one channel of one image), which takes the points a chunk at a time.
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
      const bool is_nearest = a.interpolation == Interpolation::nearest;
      Pairs weights;
      if (!is_nearest) weigh(weights);
      for (Index c = image * a.channels; c < (image + 1) * a.channels; ++c) {
        const Real* plane = a.input + c * plane_;
        Real* out = a.out + c * a.points + first;
        is_nearest ? copy_nearest(plane, out) : sample(plane, weights, out);
      }
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
  static constexpr Index kPlanes = 4;  // that take turns

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

  // Of a point's four pixels in the order left, right of its upper and of its lower line.
  FUSEDRNN_INLINE Real weight(int p, int corner) const {
    return (corner & 1 ? taps.right[p] : 1 - taps.right[p]) * (corner & 2 ? taps.down[p] : 1 - taps.down[p]);
  }

  // The pixels of a chunk's points, so that what is computed of them comes in vectors: pairs of one line.
  struct Pairs {
    alignas(64) Real upper[2 * kChunk], lower[2 * kChunk];
  };
  void fetch(const Real* plane, Pairs& pairs) const {
    for (int p = 0; p < taps.count; ++p) {
      const Real *upper = plane + taps.at[p], *lower = upper + a.width;
      if (taps.has[p] != kAll) {
        fetch_some(taps.has[p], upper, lower, pairs.upper + 2 * p, pairs.lower + 2 * p);
      } else {
        __builtin_memcpy(pairs.upper + 2 * p, upper, 2 * sizeof(Real));
        __builtin_memcpy(pairs.lower + 2 * p, lower, 2 * sizeof(Real));
      }
    }
  }
  // A pixel outside is not 0 times something: it is not there.
  FUSEDRNN_NOINLINE static void fetch_some(int has, const Real* upper, const Real* lower, Real* to_upper,
                                           Real* to_lower) {
    for (int side = 0; side < 2; ++side) {
      to_upper[side] = has & 1 << side ? upper[side] : Real(0);
      to_lower[side] = has & 4 << side ? lower[side] : Real(0);
    }
  }

  void weigh(Pairs& weights) const {
    for (int p = 0; p < taps.count; ++p)
      for (int side = 0; side < 2; ++side) {
        weights.upper[2 * p + side] = weight(p, side);
        weights.lower[2 * p + side] = weight(p, 2 + side);
      }
  }
  // Of the nearest pixel there are no weights.
  void copy_nearest(const Real* plane, Real* out) const {
    for (int p = 0; p < taps.count; ++p)
      out[p] = taps.has[p] == kUpperLeft ? plane[taps.at[p]] : taps.has[p] == kNotFinite ? taps.right[p] : Real(0);
  }
  void sample(const Real* plane, const Pairs& weights, Real* out) const {
    Pairs pixels;
    fetch(plane, pixels);
    for (int i = 0; i < 2 * taps.count; ++i)
      pixels.upper[i] = pixels.upper[i] * weights.upper[i] + pixels.lower[i] * weights.lower[i];
    for (int p = 0; p < taps.count; ++p) out[p] = pixels.upper[2 * p] + pixels.upper[2 * p + 1];
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
        Pairs weights;
        weigh(weights);
        for (Index plane = c; plane < end; plane += kPlanes)
          for (int side = 0; side < 2; ++side) add(plane, smaller(kPlanes, end - plane), first, side, weights);
      }
      c = end;
    }
  }
  // To `count` planes, which take turns, and of the pixels on one side alone: the next point often has this one's other
  // pixels, and a processor waits when it reads a pair of numbers of which it has just written one.
  void add(Index plane, Index count, Index first, int side, const Pairs& weights) const {
    const Real* dout = a.dout + plane * a.points + first;
    Real* pixels = a.dinput + plane * plane_ + side;
    for (int p = 0; p < taps.count; ++p) {
      const int has = taps.has[p] >> side;
      Real *upper = pixels + taps.at[p], *lower = upper + a.width;
      const Real upper_weight = weights.upper[2 * p + side], lower_weight = weights.lower[2 * p + side];
      for (Index c = 0; c < count; ++c, upper += plane_, lower += plane_) {
        const Real gradient = dout[c * a.points + p];
        if (has & 1) *upper += gradient * upper_weight;
        if (has & 4) *lower += gradient * lower_weight;
      }
    }
  }

  void grid_gradient(Index image, Index first) const {
    Real x[kChunk], y[kChunk];
    for (int p = 0; p < taps.count; ++p) x[p] = y[p] = 0;
    if (a.interpolation == Interpolation::bilinear)
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
    Pairs pixels;
    fetch(plane, pixels);
    for (int p = 0; p < taps.count; ++p) {
      const Real *upper = pixels.upper + 2 * p, *lower = pixels.lower + 2 * p;
      const Real right = taps.right[p], down = taps.down[p];
      x[p] += dout[p] * ((upper[1] - upper[0]) * (1 - down) + (lower[1] - lower[0]) * down);
      y[p] += dout[p] * ((lower[0] - upper[0]) * (1 - right) + (lower[1] - upper[1]) * right);
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
