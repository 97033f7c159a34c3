// The cells' vocabulary for one number at a time: what csrc/cpu/simd/vec.h and activations.h are for a vector.
// Errors, in ulp of the result, where it is normal. Host: those of the C library, below 1 for exp and tanh. Device: by
// the CUDA programming guide expf 1, tanhf 2, exp 1, tanh 2, without -use_fast_math. sigmoid adds the rounding of a sum
// and of a quotient to that of exp: at most 2 everywhere, but 2.5 for a float on a device, whose reciprocal has an
// error of 1. A nan gives a nan.
#pragma once
#include <cmath>

#include "common/attributes.h"

namespace fusedrnn {
namespace {

template <class Real>
struct Scalar {
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

}  // namespace
}  // namespace fusedrnn
