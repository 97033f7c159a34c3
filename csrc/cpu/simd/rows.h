// Reductions and maps over one row of numbers. A sum has sixteen partial results on every ISA, which are then added in
// one fixed order, so that a row's result depends on the row alone.
#pragma once
#include "common/arguments.h"
#include "cpu/simd/activations.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

inline float natural_log(float x) { return __builtin_logf(x); }
inline double natural_log(double x) { return __builtin_log(x); }

// Sixteen partial results.
template <class Real>
struct Partials {
  using V = Vec<Real>;
  static constexpr Index kVectors = kBlock / V::lanes;
  V part[kVectors];

  FUSEDRNN_INLINE explicit Partials(Real value) {
    for (Index k = 0; k < kVectors; ++k) part[k] = V(value);
  }
  FUSEDRNN_INLINE Real sum(Real sum = Real(0)) const {
    Real lane[kBlock];
    store(lane);
    for (Index u = 0; u < kBlock; ++u) sum += lane[u];
    return sum;
  }
  // A nan is left out.
  FUSEDRNN_INLINE Real maximum() const {
    Real lane[kBlock];
    store(lane);
    Real maximum = lane[0];
    for (Index u = 1; u < kBlock; ++u) maximum = lane[u] > maximum ? lane[u] : maximum;
    return maximum;
  }
  // False where any is a nan.
  FUSEDRNN_INLINE bool all_at_most(Real bound) const {
    Real lane[kBlock];
    store(lane);
    bool all = true;
    for (Index u = 0; u < kBlock; ++u) all &= lane[u] <= bound;
    return all;
  }

 private:
  FUSEDRNN_INLINE void store(Real* lane) const {
    for (Index k = 0; k < kVectors; ++k) part[k].store(lane + k * V::lanes);
  }
};

// 0, 1, 2, ...
template <class Real>
FUSEDRNN_INLINE Vec<Real> lane_numbers() {
  static constexpr Real kNumbers[kBlock] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return Vec<Real>::load(kNumbers);
}

// Calls use(k, first, count, vector) for each vector of a row: it is the k-th of its block of sixteen and begins at
// element `first`; `count` of its lanes are the row's, the others hold `absent`.
template <class Real, class Use>
FUSEDRNN_INLINE void each_vector(const Real* row, Index columns, Real absent, const Use& use) {
  using V = Vec<Real>;
  Index first = 0;
  for (; first + kBlock <= columns; first += kBlock)
    for (Index k = 0; k < kBlock / V::lanes; ++k)
      use(k, first + k * V::lanes, V::lanes, V::load(row + first + k * V::lanes));
  for (Index k = 0; first < columns; ++k, first += V::lanes) {
    const int count = static_cast<int>(smaller(V::lanes, columns - first));
    const V value = V::load_partial(row + first, count);
    use(k, first, count, count == V::lanes ? value : select(lane_numbers<Real>() < V(Real(count)), value, V(absent)));
  }
}

template <class Real>
FUSEDRNN_INLINE Real row_maximum(const Real* row, Index columns) {
  const Real lowest = -Real(__builtin_inf());
  Partials<Real> partial(lowest);
  each_vector(row, columns, lowest,
              [&](Index k, Index, int, Vec<Real> value) { partial.part[k] = at_least(partial.part[k], value); });
  return partial.maximum();
}

// The sum of exp(x - maximum).
template <class Real>
FUSEDRNN_INLINE Real row_exponential_sum(const Real* row, Index columns, Real maximum) {
  Partials<Real> partial(Real(0));
  each_vector(row, columns, -Real(__builtin_inf()),
              [&](Index k, Index, int, Vec<Real> value) { partial.part[k] += exp(value - Vec<Real>(maximum)); });
  return partial.sum();
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
