// The normaliser of a softmax over products that exist some blocks at a time.
#pragma once
#include "cpu/simd/rows.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }

// Of one row: the largest logit so far, and the sum of exp(logit - maximum). Sixteen partial results at a time on every
// ISA, then one fixed order over the sixteen.
template <class Real>
struct Normaliser {
  using V = Vec<Real>;
  Real maximum = -Real(__builtin_inf()), sum = Real(0);

  // The row's logits in `count` further blocks.
  void add(const Blocked<Real>& logits, Index row, Index count) {
    const Real before = maximum;
    Partials<Real> largest(maximum);
    for (Index v = 0; v < count; ++v)
      for (Index k = 0; k < kBlock / V::lanes; ++k)
        largest.part[k] = at_least(largest.part[k], V::load(logits.at(v, row) + k * V::lanes));
    maximum = largest.maximum();
    // Where no class is possible yet, exp(-inf) is 0, and what is nan stays so.
    const Real shift = maximum == -Real(__builtin_inf()) ? Real(0) : maximum;
    Partials<Real> partial(Real(0));
    for (Index v = 0; v < count; ++v)
      for (Index k = 0; k < kBlock / V::lanes; ++k)
        partial.part[k] += exp(V::load(logits.at(v, row) + k * V::lanes) - V(shift));
    if (sum != Real(0)) sum *= exponential(before - maximum);
    sum = partial.sum(sum);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
