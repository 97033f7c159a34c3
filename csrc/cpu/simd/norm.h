// The 2-norm of a row of numbers that lies in blocks of sixteen.
#pragma once
#include <type_traits>

#include "common/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Sixteen partial sums, which are then added pair by pair: one order on every instruction set.
template <class Real>
FUSEDRNN_INLINE double sum_of_squares(const Real* values, Index stride, Index count, double scale) {
  double partial[kBlock] = {};
  Index left = count;
  for (; left >= kBlock; left -= kBlock, values += stride)
    for (Index u = 0; u < kBlock; ++u) {
      const double value = scale * static_cast<double>(values[u]);
      partial[u] += value * value;
    }
  for (Index u = 0; u < left; ++u) {
    const double value = scale * static_cast<double>(values[u]);
    partial[u] += value * value;
  }
  for (Index half = kBlock / 2; half > 0; half /= 2)
    for (Index u = 0; u < half; ++u) partial[u] += partial[u + half];
  return partial[0];
}

// Of values whose squares leave the range of a double: scaled by a power of two, by which nothing is rounded.
FUSEDRNN_NOINLINE inline double norm_out_of_range(const double* values, Index stride, Index count) {
  double largest = 0;
  for (Index i = 0; i < count; ++i)
    largest = __builtin_fmax(largest, __builtin_fabs(values[i / kBlock * stride + i % kBlock]));
  if (largest == 0 || largest > 0x1.fffffffffffffp1023) return largest;
  const double scale = __builtin_ldexp(1.0, -static_cast<int>(smaller(1000, larger(-1000, __builtin_ilogb(largest)))));
  return __builtin_sqrt(sum_of_squares(values, stride, count, scale)) / scale;
}

// Of `count` values, of which block j begins at values + j * stride. Squares of floats never leave the range of a
// double.
template <class Real>
FUSEDRNN_INLINE Real norm_of(const Real* values, Index stride, Index count) {
  const double sum = sum_of_squares(values, stride, count, 1.0);
  if constexpr (std::is_same_v<Real, double>)
    if (sum < 0x1p-900 || sum > 0x1p1000) return norm_out_of_range(values, stride, count);
  return static_cast<Real>(__builtin_sqrt(sum));
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
