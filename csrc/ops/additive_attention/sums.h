// Sums that attention takes: one for each location, and one for each column over locations or steps.
#pragma once
#include "cpu/simd/rows.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// out[j] = the sum of what term(j, partial) adds to sixteen partial results, for each location of a range. They are
// added up in the order of Partials::sum, a vector of locations at a time.
template <class Real, class Term>
FUSEDRNN_INLINE void location_sums(Range locations, const Term& term, Real* out) {
  using V = Vec<Real>;
  constexpr Index vectors = Partials<Real>::kVectors;
  for (Index j = locations.first; j < locations.last; j += V::lanes) {
    const int count = static_cast<int>(smaller(V::lanes, locations.last - j));
    V part[vectors][V::lanes];
    for (int i = 0; i < V::lanes; ++i) {
      Partials<Real> partial(Real(0));
      if (i < count) term(j + i, partial);
      for (Index k = 0; k < vectors; ++k) part[k][i] = partial.part[k];
    }
    V sum(Real(0));
    for (Index k = 0; k < vectors; ++k) {
      transpose<Real>(part[k]);
      for (int lane = 0; lane < V::lanes; ++lane) sum += part[k][lane];
    }
    sum.store_partial(out + j, count);
  }
}

// Adds the products of two rows of numbers to partial results.
template <class Real>
FUSEDRNN_INLINE void add_dot(const Real* a, const Real* b, Index columns, Partials<Real>& partial) {
  using V = Vec<Real>;
  Index first = 0;
  for (; first + kBlock <= columns; first += kBlock)
    for (Index k = 0; k < kBlock / V::lanes; ++k)
      partial.part[k] = fma(V::load(a + first + k * V::lanes), V::load(b + first + k * V::lanes), partial.part[k]);
  for (Index k = 0; first < columns; ++k, first += V::lanes) {
    const int count = static_cast<int>(smaller(V::lanes, columns - first));
    partial.part[k] = fma(V::load_partial(a + first, count), V::load_partial(b + first, count), partial.part[k]);
  }
}

// `kVectors` vectors of columns: out = initial + sum over i < count of coefficient(i) row(i). `columns` are left.
template <int kVectors, class Real, class Coefficient, class Row>
FUSEDRNN_INLINE void weighted_columns(Index count, const Coefficient& coefficient, const Row& row, Index first,
                                      Index columns, const Real* initial, Real* out) {
  using V = Vec<Real>;
  const bool whole = columns >= kVectors * V::lanes;
  const auto lanes = [&](int v) { return static_cast<int>(larger(0, smaller(V::lanes, columns - v * V::lanes))); };
  V sum[kVectors];
  for (int v = 0; v < kVectors; ++v)
    sum[v] = initial ? V::load_partial(initial + first + v * V::lanes, lanes(v)) : V(Real(0));
  for (Index i = 0; i < count; ++i) {
    const V factor(coefficient(i));
    const Real* from = row(i) + first;
    for (int v = 0; v < kVectors; ++v)
      sum[v] =
          fma(factor, whole ? V::load(from + v * V::lanes) : V::load_partial(from + v * V::lanes, lanes(v)), sum[v]);
  }
  for (int v = 0; v < kVectors; ++v) sum[v].store_partial(out + first + v * V::lanes, lanes(v));
}

// out = initial (null: zeros) + sum over i < count, in order, of coefficient(i) row(i), for the columns of a range.
template <class Real, class Coefficient, class Row>
inline void weighted_rows(Index count, const Coefficient& coefficient, const Row& row, Range columns,
                          const Real* initial, Real* out) {
  constexpr int kAtOnce = 4;
  constexpr Index width = kAtOnce * Vec<Real>::lanes;
  Index first = columns.first;
  for (; first + width <= columns.last; first += width)
    weighted_columns<kAtOnce>(count, coefficient, row, first, width, initial, out);
  for (; first < columns.last; first += Vec<Real>::lanes)
    weighted_columns<1>(count, coefficient, row, first, columns.last - first, initial, out);
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
