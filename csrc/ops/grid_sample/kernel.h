// Sampling at the points of a grid, and its gradients. Of a point all is computed by one thread in one order, and so is
// all of a plane (one channel of one image), which takes the points a chunk at a time.
#pragma once
#include "cpu/runtime/worker.h"
#include "cpu/simd/pairs.h"
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
      for (Index c = image * a.channels; c < (image + 1) * a.channels; ++c) {
        const Real* plane = a.input + c * plane_;
        Real* out = a.out + c * a.points + first;
        a.interpolation == Interpolation::nearest ? copy_nearest(plane, out) : sample(plane, out);
      }
    });
  }

  void backward() {
    // By images a point's pixels are found once for both gradients; they must come out even among the threads.
    if (a.channels > 0 && (a.images % w.threads() == 0 || a.images >= 4 * w.threads())) {
      const Range mine = part_of(a.images, w.thread, w.threads());
      scatter({mine.first * a.channels, mine.last * a.channels},
              [this](Index image, Index first) { grid_gradient(image, first); });
    } else {
      scatter(part_of(a.images * a.channels, w.thread, w.threads()), [](Index, Index) {});
      each_chunk([this](Index image, Index first) { grid_gradient(image, first); });
    }
  }

 private:
  using V = Vec<Real>;

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
      if (image + 1 < a.images && taps.turned(a.width)) touch(image + 1, first);
      chunk(image, first);
    }
  }

  // Loads a chunk's share of the next image, which is then in the L2 cache when its turn comes: no processor foresees
  // which pixels a turned grid takes, and one that takes them from memory waits for each. Prefetch instructions did not
  // help (measured on Zen 4). Not where most of the pixels are not wanted, or would not stay.
  static constexpr Index kStays = 2 << 20;  // bytes
  void touch(Index image, Index first) const {
    constexpr Index line = 64 / Index(sizeof(Real));
    const Index pixels = a.channels * plane_, last = smaller(first + kChunk, a.points);
    if (2 * a.points < plane_ || pixels * Index(sizeof(Real)) > kStays) return;
    const volatile Real* input = a.input + image * pixels;
    for (Index i = pixels * first / a.points; i < pixels * last / a.points; i += line) static_cast<void>(input[i]);
  }
  void read(Index image, Index first) {
    taps.read(a, a.grid + image * a.points * 2, first, static_cast<int>(smaller(kChunk, a.points - first)));
  }

  // What follows is of a point, or of a vector of points.

  template <class R>
  struct Pixels {
    R upper_left, upper_right, lower_left, lower_right;
  };
  template <class R>
  static FUSEDRNN_INLINE R value(const Pixels<R>& pixels, R right, R down) {
    const R one(Real(1)), left = one - right, up = one - down;
    return (pixels.upper_left * (left * up) + pixels.lower_left * (left * down)) +
           (pixels.upper_right * (right * up) + pixels.lower_right * (right * down));
  }
  // The derivatives by the column and by the line.
  template <class R>
  static FUSEDRNN_INLINE R x_derivative(const Pixels<R>& pixels, R down) {
    return (pixels.upper_right - pixels.upper_left) * (R(Real(1)) - down) +
           (pixels.lower_right - pixels.lower_left) * down;
  }
  template <class R>
  static FUSEDRNN_INLINE R y_derivative(const Pixels<R>& pixels, R right) {
    return (pixels.lower_left - pixels.upper_left) * (R(Real(1)) - right) +
           (pixels.lower_right - pixels.upper_right) * right;
  }

  // A pixel outside is not 0 times something: it is not there.
  FUSEDRNN_INLINE Pixels<V> pixels_of(const Real* plane, int p) const {
    const V zero(Real(0));
    Pixels<V> pixels = {zero, zero, zero, zero};
    if (!taps.any) return pixels;
    load_pairs(plane, taps.upper + p, pixels.upper_left, pixels.upper_right);
    load_pairs(plane, taps.lower + p, pixels.lower_left, pixels.lower_right);
    if (taps.all) return pixels;
    typename V::Bits has;
    __builtin_memcpy(&has, taps.has + p, sizeof has);
    pixels.upper_left = select((has & kUpperLeft) != 0, pixels.upper_left, zero);
    pixels.upper_right = select((has & kUpperRight) != 0, pixels.upper_right, zero);
    pixels.lower_left = select((has & kLowerLeft) != 0, pixels.lower_left, zero);
    pixels.lower_right = select((has & kLowerRight) != 0, pixels.lower_right, zero);
    return pixels;
  }
  Pixels<Real> pixels_of_corner(const Real* plane, int n) const {
    const auto has = taps.corner_has[n];
    const Real *upper = plane + taps.corner_upper[n], *lower = plane + taps.corner_lower[n];
    return {has & kUpperLeft ? upper[0] : Real(0), has & kUpperRight ? upper[1] : Real(0),
            has & kLowerLeft ? lower[0] : Real(0), has & kLowerRight ? lower[1] : Real(0)};
  }

  // Of the nearest pixel there are no weights.
  void copy_nearest(const Real* plane, Real* out) const {
    for (int p = 0; p < taps.count; ++p)
      out[p] = taps.has[p] == kUpperLeft ? plane[taps.upper[p]] : taps.has[p] == kNotFinite ? taps.right[p] : Real(0);
  }
  void sample(const Real* plane, Real* out) const {
    for (int p = 0; p < taps.count; p += V::lanes)
      store_up_to(taps.count - p, value(pixels_of(plane, p), V::load(taps.right + p), V::load(taps.down + p)), out + p);
    for (int n = 0; n < taps.corners; ++n) {
      const int p = taps.corner[n];
      out[p] = value(pixels_of_corner(plane, n), taps.right[p], taps.down[p]);
    }
  }
  static FUSEDRNN_INLINE void store_up_to(int count, V values, Real* to) {
    count < V::lanes ? values.store_partial(to, count) : values.store(to);
  }

  void grid_gradient(Index image, Index first) const {
    alignas(64) Real x[kChunk], y[kChunk];
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

  // Adds a channel's derivative of each point, times its gradient.
  void add_slopes(const Real* plane, const Real* dout, Real* x, Real* y) const {
    for (int p = 0; p < taps.count; p += V::lanes) {
      const Pixels<V> pixels = pixels_of(plane, p);
      const V gradient = V::load_partial(dout + p, static_cast<int>(smaller(V::lanes, taps.count - p)));
      (V::load(x + p) + gradient * x_derivative(pixels, V::load(taps.down + p))).store(x + p);
      (V::load(y + p) + gradient * y_derivative(pixels, V::load(taps.right + p))).store(y + p);
    }
    for (int n = 0; n < taps.corners; ++n) {
      const int p = taps.corner[n];
      const Pixels<Real> pixels = pixels_of_corner(plane, n);
      x[p] += dout[p] * x_derivative(pixels, taps.down[p]);
      y[p] += dout[p] * y_derivative(pixels, taps.right[p]);
    }
  }

  // Of a point's pixels, the pair on its upper line and that on its lower one.
  struct Weights {
    alignas(64) Real upper[2 * kChunk], lower[2 * kChunk];
  };
  void weigh(Weights& weights) const {
    for (int p = 0; p < taps.count; p += V::lanes) {
      const V right = V::load(taps.right + p), left = V(Real(1)) - right;
      const V down = V::load(taps.down + p), up = V(Real(1)) - down;
      store_pairs(left * up, right * up, weights.upper + 2 * p);
      store_pairs(left * down, right * down, weights.lower + 2 * p);
    }
  }

  // dinput of some planes, of which those of one image take their points from the same taps; then, for each chunk of an
  // image's points, more(image, first).
  template <class More>
  void scatter(Range planes, const More& more) {
    for (Index c = planes.first; c < planes.last;) {
      const Index image = c / a.channels, end = smaller(planes.last, (image + 1) * a.channels);
      for (Index i = c * plane_; i < end * plane_; ++i) a.dinput[i] = 0;
      for (Index first = 0; first < a.points; first += kChunk) {
        if (w.skip(kChunk * kWorkOfAPoint * (end - c))) return;
        read(image, first);
        Weights weights;
        weigh(weights);
        for (Index plane = c; plane < end; ++plane)
          add(a.dout + plane * a.points + first, weights, a.dinput + plane * plane_);
        more(image, first);
      }
      c = end;
    }
  }
  // Neighbours among the points often share pixels, and a processor waits when it reads a pair of numbers of which it
  // has just written one: every eighth point, in eight turns.
  static constexpr int kTurns = 8;
  void add(const Real* dout, const Weights& weights, Real* plane) const {
    for (int turn = 0; turn < kTurns; ++turn)
      for (int p = turn; p < taps.count; p += kTurns) {
        Real *upper = plane + taps.upper[p], *lower = plane + taps.lower[p];
        if (taps.has[p] == kAll) {
          add_to_pair(upper, dout[p], weights.upper + 2 * p);
          add_to_pair(lower, dout[p], weights.lower + 2 * p);
        } else if (taps.has[p] & kAll) {
          add_some(taps.has[p], dout[p], weights, p, upper, lower);
        }
      }
    for (int n = 0; n < taps.corners; ++n) {
      const int p = taps.corner[n];
      add_some(taps.corner_has[n], dout[p], weights, p, plane + taps.corner_upper[n], plane + taps.corner_lower[n]);
    }
  }
  static FUSEDRNN_INLINE void add_some(typename Taps<Real>::Whole has, Real gradient, const Weights& weights, int p,
                                       Real* upper, Real* lower) {
    for (int side = 0; side < 2; ++side) {
      if (has & kUpperLeft << side) upper[side] += gradient * weights.upper[2 * p + side];
      if (has & kLowerLeft << side) lower[side] += gradient * weights.lower[2 * p + side];
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
