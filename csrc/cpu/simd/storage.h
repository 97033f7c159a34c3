// Between arrays and registers: an element of an array is computed with as its accumulator, and turned into it and back
// here alone.
#pragma once
#include "common/number.h"
#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
FUSEDRNN_INLINE Vec<Real> load(const Real* from) {
  return Vec<Real>::load(from);
}
template <class Real>
FUSEDRNN_INLINE Vec<Real> load_partial(const Real* from, int count) {
  return Vec<Real>::load_partial(from, count);
}
template <class Real>
FUSEDRNN_INLINE void store(Vec<Real> a, Real* to) {
  a.store(to);
}
template <class Real>
FUSEDRNN_INLINE void store_partial(Vec<Real> a, Real* to, int count) {
  a.store_partial(to, count);
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
