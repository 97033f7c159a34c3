// The 2-norm of a row of numbers that lies in blocks of sixteen.
#pragma once
#include <type_traits>

#include "common/arguments.h"
#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Of sixteen partial sums: one order on every instruction set.
template <class Real>
FUSEDRNN_INLINE Real pairwise_sum(Real (&partial)[kBlock]) {
  for (Index half = kBlock / 2; half > 0; half /= 2)
    for (Index u = 0; u < half; ++u) partial[u] += partial[u + half];
  return partial[0];
}

template <class Real>
double sum_of_squares(const Real* values, Index stride, Index count, double scale) {
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
  return pairwise_sum(partial);
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

// Sums of squares within these bounds have lost no digits: what fell below the normal range is too small to matter.
template <class Real>
constexpr Real kLeastSum = sizeof(Real) == 4 ? Real(0x1p-88) : Real(0x1p-900);
template <class Real>
constexpr Real kLargestSum = sizeof(Real) == 4 ? Real(0x1p120) : Real(0x1p1000);

// Of floats the squares are added in float64, where they all are in range.
template <class Real>
FUSEDRNN_NOINLINE Real norm_of_any(const Real* values, Index stride, Index count) {
  if constexpr (std::is_same_v<Real, double>)
    return norm_out_of_range(values, stride, count);
  else
    return static_cast<Real>(__builtin_sqrt(sum_of_squares(values, stride, count, 1.0)));
}

template <class Real>
FUSEDRNN_INLINE Vec<Real> with_square(Vec<Real> value, Vec<Real> sum) {
  return fma(value, value, sum);
}

// Of `count` values, of which block j begins at values + j * stride.
template <class Real>
FUSEDRNN_INLINE Real norm_of(const Real* values, Index stride, Index count) {
  using V = Vec<Real>;
  constexpr Index vectors = kBlock / V::lanes;
  V partial[vectors];
  for (Index k = 0; k < vectors; ++k) partial[k] = V(Real(0));
  const Real* block = values;
  Index left = count;
  for (; left >= kBlock; left -= kBlock, block += stride)
    for (Index k = 0; k < vectors; ++k) partial[k] = with_square(V::load(block + k * V::lanes), partial[k]);
  for (Index k = 0; k * V::lanes < left; ++k) {
    const int lanes = static_cast<int>(smaller(V::lanes, left - k * V::lanes));
    partial[k] = with_square(V::load_partial(block + k * V::lanes, lanes), partial[k]);
  }
  Real lane[kBlock];
  for (Index k = 0; k < vectors; ++k) partial[k].store(lane + k * V::lanes);
  const Real sum = pairwise_sum(lane);
  if (sum < kLeastSum<Real> || sum > kLargestSum<Real>) return norm_of_any(values, stride, count);
  return static_cast<Real>(__builtin_sqrt(static_cast<double>(sum)));
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
