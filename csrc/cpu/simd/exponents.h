// Vectors split into a mantissa and a power of 2, and joined again: what common/scaled.h asks of its values. For one
// number of a device cuda/runtime/scalar.h has the same.
#pragma once
#include "common/scaled.h"
#include "cpu/simd/activations.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// x 2^n for a whole n of at most 0; 0 where 2^n is below the normal range.
template <class Real>
FUSEDRNN_INLINE Vec<Real> scaled_down(Vec<Real> x, Vec<Real> n) {
  using C = ExpConstants<Real>;
  const Vec<Real> bounded = at_least(n, Vec<Real>(-C::exponent_bias));  // 2^-bias comes out as 0
  return x * power_of_two(bounded + Vec<Real>(C::rounder));
}

// The m in [1, 2) with x = m 2^n; 0 and nan are themselves, with n = 0.
template <class Real>
FUSEDRNN_INLINE Vec<Real> split(Vec<Real> x, Vec<Real>& n) {
  using V = Vec<Real>;
  using C = ExpConstants<Real>;
  const auto bits = x.bits();
  // The exponent's bits as a number: put below those of 2^mantissa_bits, which is then taken off.
  const V base(static_cast<Real>(std::int64_t(1) << C::mantissa_bits));
  const V biased = V::from_bits(((bits >> C::mantissa_bits) | base.bits())) - base;
  const V one = V::from_bits((bits & ~V(Real(__builtin_inf())).bits()) | V(Real(1)).bits());
  const auto is_number = x > V(Real(0));  // neither zero nor nan
  n = select(is_number, biased - V(C::exponent_bias), V(Real(0)));
  return select(is_number, one, x);
}

// The m in [0.7, 1.5) with e^u = m 2^n, for u from `lowest` to 0: where u is so large that the reduction has no bits
// left, neither has u. See `exp` for the reduction. Below `lowest` the result is that of `lowest`.
template <class Real>
FUSEDRNN_INLINE Vec<Real> split_exp(Vec<Real> u, Real lowest, Vec<Real>& n) {
  using V = Vec<Real>;
  using C = ExpConstants<Real>;
  const V bounded = at_least(u, V(lowest));
  n = fma(bounded, V(C::log2_e), V(C::rounder)) - V(C::rounder);
  const V r = fma(n, V(-C::ln2_low), fma(n, V(-C::ln2_high), bounded));
  return expm1_reduced(at_most(at_least(r, V(Real(-0.35))), V(Real(0.35))), 1) + V(Real(1));
}

template <class Real>
FUSEDRNN_INLINE Scaled<Vec<Real>> load_scaled(const Real* mantissas, const Real* exponents) {
  return {Vec<Real>::load(mantissas), Vec<Real>::load(exponents)};
}
template <class Real>
FUSEDRNN_INLINE void store_scaled(Scaled<Vec<Real>> value, Real* mantissas, Real* exponents) {
  value.mantissa.store(mantissas);
  value.exponent.store(exponents);
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
