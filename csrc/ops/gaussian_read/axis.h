// One axis of a grid of Gaussians, for the CPU and for a device: where its filters lie, and what the gradient of a
// filter says of that. All of it is double, so that a filter has the error of its exponential alone.
#pragma once
#include <math.h>

#include "common/arguments.h"

namespace fusedrnn {

template <int kParts>
struct PartialSums {
  double part[kParts] = {};
  FUSEDRNN_INLINE double sum() const {
    double sum = 0;
    for (int p = 0; p < kParts; ++p) sum += part[p];
    return sum;
  }
};
// visit(k, k % kParts) for k = 0 .. count - 1.
template <int kParts, class Visit>
FUSEDRNN_INLINE void each_part(Index count, const Visit& visit) {
  Index k = 0;
  for (; k + kParts <= count; k += kParts)
    for (int p = 0; p < kParts; ++p) visit(k + p, p);
  for (int p = 0; k + p < count; ++p) visit(k + p, p);
}

struct GaussianPlaces {
  Index size, count;  // pixels, filters
  double center, delta, spread;

  FUSEDRNN_INLINE double offset(Index i) const {
    return static_cast<double>(i) + 1 - static_cast<double>(count) / 2 - 0.5;
  }
  FUSEDRNN_INLINE double mean(Index i) const { return center + offset(i) * delta; }
  // The variance is its inverse on the CPU, where a product takes the least time. On a device it is divided by: a call,
  // which leaves the registers to the rest.
#ifdef __CUDA_ARCH__
  FUSEDRNN_INLINE static double spread_of(double log_variance) { return ::exp(log_variance); }
  FUSEDRNN_INLINE double over_variance(double x) const { return x / spread; }
#else
  // Bounded, so that a filter's zeros stay zeros where the variance has vanished: times a square it stays finite.
  FUSEDRNN_INLINE static double spread_of(double log_variance) {
    const double inverse = ::exp(-log_variance);
    return inverse > 1e150 ? 1e150 : inverse;
  }
  FUSEDRNN_INLINE double over_variance(double x) const { return x * spread; }
#endif
  // Of pixel a = 1 .. size, the square of its distance from a filter's mean, in variances.
  FUSEDRNN_INLINE double squares(Index i, Index a) const {
    const double distance = static_cast<double>(a + 1) - mean(i);
    return over_variance(distance * distance);
  }

  // What a filter's powers are divided by.
  template <class Real>
  FUSEDRNN_INLINE static Real bounded(Real sum) {
    return sum > Real(1e-8) || sum != sum ? sum : Real(1e-8);
  }

  // The gradient by filter i, whose elements are gradient(a) and filter(a): adds to those by the center, by the
  // distance between the filters and by the logarithm of the variance. Every sum has kParts partial ones, of which a
  // compiler makes vectors.
  template <int kParts, class Gradient, class Filter>
  FUSEDRNN_INLINE void add_gradient(Index i, const Gradient& gradient, const Filter& filter, double& by_center,
                                    double& by_delta, double& by_log_variance) const {
    PartialSums<kParts> along, total;
    each_part<kParts>(size, [&](Index a, int p) {
      along.part[p] += gradient(a) * filter(a);
      total.part[p] += filter(a);
    });
    // Where the sum of a filter is bounded its elements come to less than 1, and the divisor is a constant.
    const double common = total.sum() < 1 - 1e-4 ? 0 : along.sum();
    PartialSums<kParts> by_mean, by_square;
    each_part<kParts>(size, [&](Index a, int p) {
      const double by_exponent = (gradient(a) - common) * filter(a);
      by_mean.part[p] += over_variance(by_exponent * (static_cast<double>(a + 1) - mean(i)));
      by_square.part[p] += by_exponent * (filter(a) == 0 ? 0 : squares(i, a) / 2);
    });
    by_log_variance += by_square.sum();
    by_center += by_mean.sum();
    by_delta += by_mean.sum() * offset(i);
  }
};

// Both axes of a row, and the factor gamma, from (center of x, center of y, log variance, log distance, log factor):
// the centers between -1 and 1 in the image, the distance as a share of the widest there is.
struct GaussianGrid {
  GaussianPlaces x, y;
  double factor;
  static constexpr Index kNumbers = 5;

  FUSEDRNN_INLINE GaussianGrid(Index height, Index width, Index count, const double* p) {
    const double spread = GaussianPlaces::spread_of(p[2]);
    const double delta =
        count > 1 ? static_cast<double>(larger(height, width) - 1) / static_cast<double>(count - 1) * ::exp(p[3]) : 0;
    x = {width, count, static_cast<double>(width + 1) * (p[0] + 1) / 2, delta, spread};
    y = {height, count, static_cast<double>(height + 1) * (p[1] + 1) / 2, delta, spread};
    factor = ::exp(p[4]);
  }

  // By value: a choice between addresses would keep both in a device's local memory.
  FUSEDRNN_INLINE GaussianPlaces axis(bool along_x) const {
    return {along_x ? x.size : y.size, x.count, along_x ? x.center : y.center, x.delta, x.spread};
  }

  // From gradients by the centers and the distance: those by the numbers they are made from.
  FUSEDRNN_INLINE double by_x(double center) const { return center * static_cast<double>(x.size + 1) / 2; }
  FUSEDRNN_INLINE double by_y(double center) const { return center * static_cast<double>(y.size + 1) / 2; }
  FUSEDRNN_INLINE double by_log_delta(double delta) const { return x.count > 1 ? delta * x.delta : 0.0; }
};

}  // namespace fusedrnn
