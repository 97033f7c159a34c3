// Numbers of any magnitude: a mantissa and an exponent of 2, each a lane of a vector of its own. Products of thousands
// of probabilities neither underflow nor need a logarithm, and a sum costs no exponential.
#pragma once
#include "cpu/simd/activations.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// The exponent of zero, whose mantissa is 0: below that of any product of probabilities, and far enough from the
// lowest float that sums of two are finite.
template <class Real>
constexpr Real kExponentOfZero = Real(-1e37);

template <class Real>
struct Scaled {
  using V = Vec<Real>;
  V mantissa, exponent;

  FUSEDRNN_INLINE static Scaled zero() { return {V(Real(0)), V(kExponentOfZero<Real>)}; }
  FUSEDRNN_INLINE static Scaled load(const Real* mantissas, const Real* exponents) {
    return {V::load(mantissas), V::load(exponents)};
  }
  FUSEDRNN_INLINE void store(Real* mantissas, Real* exponents) const {
    mantissa.store(mantissas);
    exponent.store(exponents);
  }
  // The mantissa at another, not lower exponent.
  FUSEDRNN_INLINE V at(V other) const {
    using C = ExpConstants<Real>;
    const V shift = at_least(exponent - other, V(-C::exponent_bias));  // 2^-bias comes out as 0
    return mantissa * power_of_two(shift + V(C::rounder));
  }
  // The same number with a mantissa in [1, 2). Sums and products need that only every few operations.
  FUSEDRNN_INLINE Scaled normalised() const {
    using C = ExpConstants<Real>;
    const auto bits = mantissa.bits();
    // The exponent's bits as a number: put below those of 2^mantissa_bits, which is then taken off.
    const V base(static_cast<Real>(std::int64_t(1) << C::mantissa_bits));
    const V biased = V::from_bits(((bits >> C::mantissa_bits) | base.bits())) - base;
    const V n = biased - V(C::exponent_bias);
    const V one = V::from_bits((bits & ~exponent_mask()) | V(Real(1)).bits());
    const auto is_number = mantissa > V(Real(0));  // neither zero nor nan, which stay
    return {select(is_number, one, mantissa), select(is_number, exponent + n, exponent)};
  }

 private:
  FUSEDRNN_INLINE static typename V::Bits exponent_mask() { return V(Real(__builtin_inf())).bits(); }
};

template <class Real>
FUSEDRNN_INLINE Scaled<Real> operator*(Scaled<Real> a, Scaled<Real> b) {
  return {a.mantissa * b.mantissa, at_least(a.exponent + b.exponent, Vec<Real>(kExponentOfZero<Real>))};
}
template <class Real>
FUSEDRNN_INLINE Scaled<Real> operator+(Scaled<Real> a, Scaled<Real> b) {
  const Vec<Real> exponent = at_least(a.exponent, b.exponent);
  return {a.at(exponent) + b.at(exponent), exponent};
}
template <class Real>
FUSEDRNN_INLINE Scaled<Real> sum(Scaled<Real> a, Scaled<Real> b, Scaled<Real> c) {
  const Vec<Real> exponent = at_least(at_least(a.exponent, b.exponent), c.exponent);
  return {(a.at(exponent) + b.at(exponent)) + c.at(exponent), exponent};
}

// e^u for u <= 0, -inf included; see `exp` for the reduction. Where u is so large that the reduction has no bits left,
// neither has u.
template <class Real>
FUSEDRNN_INLINE Scaled<Real> scaled_exp(Vec<Real> u) {
  using V = Vec<Real>;
  using C = ExpConstants<Real>;
  const auto is_zero = u == V(-Real(__builtin_inf()));
  const V bounded = at_least(u, V(kExponentOfZero<Real> / 2));
  const V n = fma(bounded, V(C::log2_e), V(C::rounder)) - V(C::rounder);
  const V r = fma(n, V(-C::ln2_low), fma(n, V(-C::ln2_high), bounded));
  const V q = expm1_reduced(at_most(at_least(r, V(Real(-0.35))), V(Real(0.35))), 1);
  const Scaled<Real> zero = Scaled<Real>::zero();
  return {select(is_zero, zero.mantissa, q + V(Real(1))), select(is_zero, zero.exponent, n)};
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
