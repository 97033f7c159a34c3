// Numbers of any magnitude: a mantissa and an exponent of 2. Products of thousands of probabilities neither underflow
// nor need a logarithm, and a sum costs no exponential. V is a vector of the CPU (cpu/simd/exponents.h)
// or one number of a device (cuda/runtime/scalar.h), with functions scaled_down, split, split_exp, at_least and select.
#pragma once
#include <cmath>

#include "common/attributes.h"

namespace fusedrnn {
namespace {

// The exponent of zero, whose mantissa is 0: below that of any product of probabilities, and far enough from the
// lowest float that sums of two are finite.
template <class Real>
constexpr Real kExponentOfZero = Real(-1e37);

template <class V>
struct Scaled {
  using Real = typename V::real;
  V mantissa, exponent;

  FUSEDRNN_INLINE static Scaled zero() { return {V(Real(0)), V(kExponentOfZero<Real>)}; }
  // The mantissa at another, not lower exponent.
  FUSEDRNN_INLINE V at(V other) const { return scaled_down(mantissa, exponent - other); }
  // The same number with a mantissa in [1, 2). Sums and products need that only every few operations.
  FUSEDRNN_INLINE Scaled normalised() const {
    V n;
    const V one = split(mantissa, n);
    return {one, exponent + n};
  }
};

template <class V>
FUSEDRNN_INLINE Scaled<V> operator*(Scaled<V> a, Scaled<V> b) {
  return {a.mantissa * b.mantissa, at_least(a.exponent + b.exponent, V(kExponentOfZero<typename V::real>))};
}
template <class V>
FUSEDRNN_INLINE Scaled<V> operator+(Scaled<V> a, Scaled<V> b) {
  const V exponent = at_least(a.exponent, b.exponent);
  return {a.at(exponent) + b.at(exponent), exponent};
}
template <class V>
FUSEDRNN_INLINE Scaled<V> sum(Scaled<V> a, Scaled<V> b, Scaled<V> c) {
  const V exponent = at_least(at_least(a.exponent, b.exponent), c.exponent);
  return {(a.at(exponent) + b.at(exponent)) + c.at(exponent), exponent};
}

// e^u for u <= 0, -inf included.
template <class V>
FUSEDRNN_INLINE Scaled<V> scaled_exp(V u) {
  using Real = typename V::real;
  const auto is_zero = u == V(-Real(INFINITY));
  V n;
  const V m = split_exp(u, kExponentOfZero<Real> / 2, n);
  const Scaled<V> zero = Scaled<V>::zero();
  return {select(is_zero, zero.mantissa, m), select(is_zero, zero.exponent, n)};
}

// -log(a + b), of two mantissas and their exponents; infinite of zeros.
template <class Real>
FUSEDRNN_INLINE Real minus_log_sum(Real a, Real a_exponent, Real b, Real b_exponent) {
  const Real exponent = b_exponent > a_exponent ? b_exponent : a_exponent;
  double total = 0;
  if (!(a == 0)) total += static_cast<double>(a) * std::exp2(static_cast<double>(a_exponent - exponent));
  if (!(b == 0)) total += static_cast<double>(b) * std::exp2(static_cast<double>(b_exponent - exponent));
  if (total == 0) return Real(INFINITY);
  return static_cast<Real>(-(std::log(total) + static_cast<double>(exponent) * 0.693147180559945309417));
}

}  // namespace
}  // namespace fusedrnn
