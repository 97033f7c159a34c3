// One axis of a grid of Gaussians, for the CPU and for a device: where its filters lie, and what the gradient of a
// filter says of that. All of it is double, so that a filter has the error of its exponential alone.
#pragma once
#include <math.h>

#include "common/arguments.h"

namespace fusedrnn {

struct GaussianPlaces {
  Index size, count;  // pixels, filters
  double center, delta, variance;

  FUSEDRNN_INLINE double offset(Index i) const {
    return static_cast<double>(i) + 1 - static_cast<double>(count) / 2 - 0.5;
  }
  FUSEDRNN_INLINE double mean(Index i) const { return center + offset(i) * delta; }
  // Of pixel a = 1 .. size, the square of its distance from a filter's mean, in variances.
  FUSEDRNN_INLINE double squares(Index i, Index a) const {
    const double distance = static_cast<double>(a + 1) - mean(i);
    return distance * distance / variance;
  }

  // What a filter's powers are divided by.
  template <class Real>
  FUSEDRNN_INLINE static Real bounded(Real sum) {
    return sum > Real(1e-8) || sum != sum ? sum : Real(1e-8);
  }

  // The gradient by filter i, whose elements are gradient(a) and filter(a): adds to those by the center, by the
  // distance between the filters and by the logarithm of the variance.
  template <class Gradient, class Filter>
  FUSEDRNN_INLINE void add_gradient(Index i, const Gradient& gradient, const Filter& filter, double& by_center,
                                    double& by_delta, double& by_log_variance) const {
    double along = 0, total = 0;
    for (Index a = 0; a < size; ++a) {
      along += gradient(a) * filter(a);
      total += filter(a);
    }
    // Where the sum of a filter is bounded its elements come to less than 1, and the divisor is a constant.
    const double common = total < 1 - 1e-4 ? 0 : along;
    double by_mean = 0;
    for (Index a = 0; a < size; ++a) {
      const double by_exponent = (gradient(a) - common) * filter(a);
      by_mean += by_exponent * (static_cast<double>(a + 1) - mean(i)) / variance;
      by_log_variance += by_exponent * (filter(a) == 0 ? 0 : squares(i, a) / 2);
    }
    by_center += by_mean;
    by_delta += by_mean * offset(i);
  }
};

// Both axes of a row, and the factor gamma, from (center of x, center of y, log variance, log distance, log factor):
// the centers between -1 and 1 in the image, the distance as a share of the widest there is.
struct GaussianGrid {
  GaussianPlaces x, y;
  double factor;
  static constexpr Index kNumbers = 5;

  FUSEDRNN_INLINE GaussianGrid(Index height, Index width, Index count, const double* p) {
    const double variance = ::exp(p[2]);
    const double delta =
        count > 1 ? static_cast<double>(larger(height, width) - 1) / static_cast<double>(count - 1) * ::exp(p[3]) : 0;
    x = {width, count, static_cast<double>(width + 1) * (p[0] + 1) / 2, delta, variance};
    y = {height, count, static_cast<double>(height + 1) * (p[1] + 1) / 2, delta, variance};
    factor = ::exp(p[4]);
  }

  // By value: a choice between addresses would keep both in a device's local memory.
  FUSEDRNN_INLINE GaussianPlaces axis(bool along_x) const {
    return {along_x ? x.size : y.size, x.count, along_x ? x.center : y.center, x.delta, x.variance};
  }

  // From gradients by the centers and the distance: those by the numbers they are made from.
  FUSEDRNN_INLINE double by_x(double center) const { return center * static_cast<double>(x.size + 1) / 2; }
  FUSEDRNN_INLINE double by_y(double center) const { return center * static_cast<double>(y.size + 1) / 2; }
  FUSEDRNN_INLINE double by_log_delta(double delta) const { return x.count > 1 ? delta * x.delta : 0.0; }
};

}  // namespace fusedrnn
