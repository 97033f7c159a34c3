// The cells' vocabulary for one number at a time: what csrc/cpu/simd/vec.h and activations.h are for a vector.
// Errors, in ulp of the result, where it is normal. Host: those of the C library, below 1 for exp and tanh. Device: by
// the CUDA programming guide expf 1, tanhf 2, exp 1, tanh 2, without -use_fast_math. sigmoid adds the rounding of a sum
// and of a quotient to that of exp: at most 2 everywhere, but 2.5 for a float on a device, whose reciprocal has an
// error of 1. A nan gives a nan.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/attributes.h"

namespace fusedrnn {
namespace {

template <class Real>
struct Scalar {
  using real = Real;
  Real value;
  Scalar() = default;
  FUSEDRNN_INLINE explicit Scalar(Real v) : value(v) {}
  FUSEDRNN_INLINE Scalar operator-() const { return Scalar(-value); }
  FUSEDRNN_INLINE Scalar& operator+=(Scalar b) { return *this = *this + b; }
  friend FUSEDRNN_INLINE Scalar operator+(Scalar a, Scalar b) { return Scalar(a.value + b.value); }
  friend FUSEDRNN_INLINE Scalar operator-(Scalar a, Scalar b) { return Scalar(a.value - b.value); }
  friend FUSEDRNN_INLINE Scalar operator*(Scalar a, Scalar b) { return Scalar(a.value * b.value); }
  friend FUSEDRNN_INLINE bool operator<(Scalar a, Scalar b) { return a.value < b.value; }
  friend FUSEDRNN_INLINE bool operator>(Scalar a, Scalar b) { return a.value > b.value; }
  friend FUSEDRNN_INLINE bool operator<=(Scalar a, Scalar b) { return a.value <= b.value; }
  friend FUSEDRNN_INLINE bool operator>=(Scalar a, Scalar b) { return a.value >= b.value; }
  friend FUSEDRNN_INLINE bool operator==(Scalar a, Scalar b) { return a.value == b.value; }
};

template <class Real>
FUSEDRNN_INLINE Scalar<Real> select(bool condition, Scalar<Real> a, Scalar<Real> b) {
  return condition ? a : b;
}
template <class Real>
FUSEDRNN_INLINE Scalar<Real> fma(Scalar<Real> a, Scalar<Real> b, Scalar<Real> c) {
  return Scalar<Real>(std::fma(a.value, b.value, c.value));
}
template <class Real>
FUSEDRNN_INLINE Scalar<Real> tanh(Scalar<Real> a) {
  return Scalar<Real>(std::tanh(a.value));
}
template <class Real>
FUSEDRNN_INLINE Scalar<Real> sigmoid(Scalar<Real> a) {
  // Of a large -a the exponential is infinite and the result 0.
  const Real divisor = Real(1) + std::exp(-a.value);
#ifdef __CUDA_ARCH__
  // An exact quotient branches, and branches keep the gates of a cell from being computed side by side.
  if constexpr (sizeof(Real) == sizeof(float)) {
    float quotient;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(divisor));
    return Scalar<Real>(quotient);
  }
#endif
  return Scalar<Real>(Real(1) / divisor);
}

// A nan in `a` stays.
template <class Real>
FUSEDRNN_INLINE Scalar<Real> at_least(Scalar<Real> a, Scalar<Real> bound) {
  return a < bound ? bound : a;
}

// The layout of a number, its bits, and ln 2 in two parts of which the first has so few bits that its products are
// exact.
template <class Real>
struct Layout;
template <>
struct Layout<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float log2_e = 0x1.715476p0f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
};
template <>
struct Layout<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double log2_e = 0x1.71547652b82fep0, ln2_high = 0x1.62e42fefa3800p-1,
                          ln2_low = 0x1.ef35793c76730p-45;
};

template <class Real>
FUSEDRNN_INLINE typename Layout<Real>::Bits bits_of(Scalar<Real> x) {
  typename Layout<Real>::Bits bits;
  memcpy(&bits, &x.value, sizeof(bits));
  return bits;
}
template <class Real>
FUSEDRNN_INLINE Scalar<Real> from_bits(typename Layout<Real>::Bits bits) {
  Scalar<Real> x;
  memcpy(&x.value, &bits, sizeof(bits));
  return x;
}

// Numbers taken apart into a mantissa and a power of 2, and put together again.
// x 2^n for a whole n of at most 0; 0 where 2^n is below the normal range.
template <class Real>
FUSEDRNN_INLINE Scalar<Real> scaled_down(Scalar<Real> x, Scalar<Real> n) {
  using L = Layout<Real>;
  const int biased = n.value > Real(-L::bias) ? static_cast<int>(n.value) + L::bias : 0;
  return x * from_bits<Real>(static_cast<typename L::Bits>(biased) << L::mantissa_bits);
}
// The m in [1, 2) with x = m 2^n; 0 and nan are themselves, with n = 0.
template <class Real>
FUSEDRNN_INLINE Scalar<Real> split(Scalar<Real> x, Scalar<Real>& n) {
  using L = Layout<Real>;
  using Bits = typename L::Bits;
  const bool is_number = x.value > Real(0);
  const Bits bits = bits_of(x), mantissa = bits & ((Bits(1) << L::mantissa_bits) - 1);
  n = Scalar<Real>(is_number ? static_cast<Real>(static_cast<int>(bits >> L::mantissa_bits) - L::bias) : Real(0));
  return is_number ? from_bits<Real>(mantissa | Bits(L::bias) << L::mantissa_bits) : x;
}
// The m in [0.7, 1.5) with e^u = m 2^n, for u from `lowest` to 0: where u is so large that the reduction has no bits
// left, neither has u. Below `lowest` the result is that of `lowest`.
template <class Real>
FUSEDRNN_INLINE Scalar<Real> split_exp(Scalar<Real> u, Real lowest, Scalar<Real>& n) {
  using L = Layout<Real>;
  const Real bounded = u.value < lowest ? lowest : u.value;
  n = Scalar<Real>(std::rint(bounded * L::log2_e));
  const Real r = std::fma(n.value, -L::ln2_low, std::fma(n.value, -L::ln2_high, bounded));
  return Scalar<Real>(std::exp(r < Real(-0.35) ? Real(-0.35) : r > Real(0.35) ? Real(0.35) : r));
}

}  // namespace
}  // namespace fusedrnn
