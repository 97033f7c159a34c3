// exp, sigmoid and tanh on a Vec. Each costs one exponential and at most one division, uses the same operations in the
// same order on every ISA with a fused multiply-add (so AVX2 and AVX-512 agree bit by bit), and holds its error bound
// without one and with or without denormals flushed. A nan gives a nan.
// The ulp over each function were measured where |result| is normal, float over all 2^32 arguments, double over 3e7
// random ones: first without a fused multiply-add (v2), then with one (v3, v4).
#pragma once

#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// e^u = 2^n (1 + q), with n = round(u / ln 2), r = u - n ln 2 and q = expm1(r), |r| <= ln(2) / 2.
// Adding `rounder` to a number rounds it to an integer n and leaves n + the exponent bias in the low bits of the sum,
// from where a shift makes 2^n of it. ln2_high has so few bits that n * ln2_high is exact.
// The coefficients of r^2, r^3, ... are a minimax fit of the relative error of q.
template <class Real>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float rounder = 0x1.8p23f + 127, exponent_bias = 127, log2_e = 0x1.715476p0f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr int mantissa_bits = 23, terms = 5;
  static constexpr float expm1[terms] = {0.5f, 0x1.5554b6p-3f, 0x1.5555bap-5f, 0x1.1223bcp-7f, 0x1.6c5578p-10f};
  static constexpr float exp_lowest = -104, exp_highest = 89, sigmoid_highest = 40, tanh_highest = 10;
};
template <>
struct ExpConstants<double> {
  static constexpr double rounder = 0x1.8p52 + 1023, exponent_bias = 1023, log2_e = 0x1.71547652b82fep0;
  static constexpr double ln2_high = 0x1.62e42fefa3800p-1, ln2_low = 0x1.ef35793c76730p-45;
  static constexpr int mantissa_bits = 52, terms = 11;
  static constexpr double expm1[terms] = {
      0.5,
      0x1.5555555555557p-3,
      0x1.5555555555552p-5,
      0x1.111111111004dp-7,
      0x1.6c16c16c18933p-10,
      0x1.a01a01ac2161fp-13,
      0x1.a01a0197beedap-16,
      0x1.71de019f14b27p-19,
      0x1.27e500d13eb83p-22,
      0x1.af4eec1971c33p-26,
      0x1.1f331aa1d0c93p-29,
  };
  static constexpr double exp_lowest = -746, exp_highest = 710, sigmoid_highest = 80, tanh_highest = 20;
};

// 2^n for the n that was left in the low bits of a sum with `rounder`.
template <class Real>
FUSEDRNN_INLINE Vec<Real> power_of_two(Vec<Real> rounded) {
  return Vec<Real>::from_bits(rounded.bits() << ExpConstants<Real>::mantissa_bits);
}

// expm1(scale * r) / scale for |scale * r| <= ln(2) / 2: small r come out with a small relative error.
template <class Real>
FUSEDRNN_INLINE Vec<Real> expm1_reduced(Vec<Real> r, int scale) {
  using C = ExpConstants<Real>;
  Real power = 1;
  for (int term = 1; term < C::terms; term++) power *= scale;
  Vec<Real> sum(C::expm1[C::terms - 1] * power * scale);
  for (int term = C::terms - 2; term >= 0; term--) {
    sum = fma(sum, r, Vec<Real>(C::expm1[term] * power));
    power /= scale;
  }
  return fma(sum * r, r, r);
}

// Float 1.02 and 1.04 ulp, double 0.96 and 0.99.
template <class Real>
FUSEDRNN_INLINE Vec<Real> exp(Vec<Real> a) {
  using V = Vec<Real>;
  using C = ExpConstants<Real>;
  const V u = at_most(at_least(a, V(C::exp_lowest)), V(C::exp_highest));
  const V n = fma(u, V(C::log2_e), V(C::rounder)) - V(C::rounder);
  const V q = expm1_reduced(fma(n, V(-C::ln2_low), fma(n, V(-C::ln2_high), u)), 1);
  // 2^n leaves the normal range at both ends, half of n does not.
  const V half = fma(n, V(Real(0.5)), V(C::rounder)), rest = n - (half - V(C::rounder));
  const V s = power_of_two(half);
  return fma(s, q, s) * power_of_two(rest + V(C::rounder));
}

// 1 / (1 + e^-a), for both signs of a. n stops at the highest exponent, from where on r and with it the polynomial grow
// until the sum is infinite and the result 0 (on the way there, below the normal range, it is 6e-6 off). With q for
// -expm1(-r), 1 + s (1 - q) is added up so that neither the 1 nor s gets lost. The worst a is just below 0, where the
// sum's two roundings and the quotient's come to 2 ulp at most. Float 2.00 (1.9991) ulp for both, double 2.00 (1.9976).
template <class Real>
FUSEDRNN_INLINE Vec<Real> sigmoid(Vec<Real> a) {
  using V = Vec<Real>;
  using C = ExpConstants<Real>;
  const V one(Real(1)), u = at_most(a, V(C::sigmoid_highest));
  const V rounded = at_most(fma(u, V(-C::log2_e), V(C::rounder)), V(C::rounder + C::exponent_bias));
  const V n = rounded - V(C::rounder), s = power_of_two(rounded);
  const V q = expm1_reduced(fma(n, V(C::ln2_low), fma(n, V(C::ln2_high), u)), -1);
  return one / (at_least(s, one) + fma(-s, q, at_most(s, one)));
}

// With m = expm1(-2|a|) this is -m / (2 + m) and the sign of a; s below is 2^(n+1) and q is expm1(r) / 2.
// Float 1.96 and 1.97 ulp, double 1.90 and 1.85.
template <class Real>
FUSEDRNN_INLINE Vec<Real> tanh(Vec<Real> a) {
  using V = Vec<Real>;
  using C = ExpConstants<Real>;
  const V one(Real(1)), half(Real(0.5)), minus_abs = V::from_bits(a.bits() | sign_bit<Real>());
  const V u = at_least(minus_abs, V(-C::tanh_highest));
  const V rounded = fma(u, V(2 * C::log2_e), V(C::rounder + 1)), n = rounded - V(C::rounder + 1);
  const V q = expm1_reduced(fma(n, V(C::ln2_low / -2), fma(n, V(C::ln2_high / -2), u)), 2);
  const V s = power_of_two(rounded), below = fma(s, half, -one), above = fma(s, half, one);
  const V m = fma(s, q, below), denominator = fma(s, q, above);
  V quotient = m / denominator;
  if constexpr (sizeof(Real) == 8 || !fma_is_fused) {
    // Floats with a fused multiply-add stay within 2 ulp as they are; the others do not (up to 2.1 ulp, |a| from 0.2 to
    // 0.55). There what the two sums lost is put back, to first order, with 0.65 for 1 / denominator.
    const V lost = fma(-quotient, fma(s, q, above - denominator), fma(s, q, below - m));
    quotient = fma(lost, V(Real(0.65)), quotient);
  }
  return copysign(quotient, a);
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
