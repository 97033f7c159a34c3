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

// bfloat16: the upper half of a float32, as integers of both widths, which every compiler turns into one instruction.
typedef std::uint32_t WideBits __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t NarrowBits __attribute__((vector_size(kVectorBytes / 2)));

FUSEDRNN_INLINE Vec<float> widened(NarrowBits bits) {
  return Vec<float>((Vec<float>::Native)(__builtin_convertvector(bits, WideBits) << 16));
}
// To nearest, a tie going to the even neighbour; a nan stays one.
FUSEDRNN_INLINE WideBits rounded_bits(Vec<float> a) {
  const WideBits bits = (WideBits)a.native, rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  return a.native == a.native ? rounded : (bits & 0xffff0000u) | 0x00400000u;
}
FUSEDRNN_INLINE NarrowBits narrowed(Vec<float> a) {
#ifdef __AVX512BF16__
  return (NarrowBits)native::narrowed(a.native);
#else
  return __builtin_convertvector(rounded_bits(a) >> 16, NarrowBits);
#endif
}

FUSEDRNN_INLINE Vec<float> load(const Bfloat16* from) {
  NarrowBits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return widened(bits);
}
FUSEDRNN_INLINE Vec<float> load_partial(const Bfloat16* from, int count) {
  if (count == Vec<float>::lanes) return load(from);  // a copy of another length calls a function
  NarrowBits bits = {};
  __builtin_memcpy(&bits, from, static_cast<std::size_t>(count) * sizeof *from);
  return widened(bits);
}
FUSEDRNN_INLINE void store(Vec<float> a, Bfloat16* to) {
  const NarrowBits bits = narrowed(a);
  __builtin_memcpy(to, &bits, sizeof bits);
}
FUSEDRNN_INLINE void store_partial(Vec<float> a, Bfloat16* to, int count) {
  if (count == Vec<float>::lanes) return store(a, to);
  const NarrowBits bits = narrowed(a);
  __builtin_memcpy(to, &bits, static_cast<std::size_t>(count) * sizeof *to);
}

// A block's last units: lanes from `count` on are zero. What stands in units that are not there would be a nan times
// the zeros that a matrix is filled up with, where it is infinite.
template <class Real>
FUSEDRNN_INLINE Vec<Real> first_lanes(Vec<Real> a, int count) {
  if (count == Vec<Real>::lanes) return a;
  Real lanes[Vec<Real>::lanes];
  a.store(lanes);
  return Vec<Real>::load_partial(lanes, count);
}

// What a number is once an array of T has held it.
template <class T>
FUSEDRNN_INLINE Vec<Accumulator<T>> rounded(Vec<Accumulator<T>> a) {
  if constexpr (sizeof(T) == sizeof(Accumulator<T>))
    return a;
  else
    return Vec<float>((Vec<float>::Native)rounded_bits(a));
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
