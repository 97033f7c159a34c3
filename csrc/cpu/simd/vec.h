// The SIMD vocabulary of the CPU engine: Vec<float> and Vec<double>, one register of the instruction set this file is
// compiled for, whose own header says what its instructions are. All of it sits in an unnamed namespace and is always
// inlined: the engine is compiled once per instruction set, and a symbol shared between those objects could make an
// older processor run AVX-512 code. The namespace around it has the instruction set's name, so that a profile says
// which one ran.
#pragma once

#include <cstdint>
#include <utility>

#include "common/attributes.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "cpu/simd/v4.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "cpu/simd/v3.h"
#elif defined(__SSE2__)
#include "cpu/simd/v2.h"
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include "cpu/simd/neon.h"
#else
#include "cpu/simd/generic.h"
#endif

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
struct Vec {
  using real = Real;
  using Native = typename Register<Real, kVectorBytes>::Native;
  using Bits = typename Register<Real, kVectorBytes>::Bits;
  using Mask = Bits;  // all ones where true; & | ~ work on it as they are
  static constexpr int lanes = kVectorBytes / sizeof(Real);

  Native native;

  Vec() = default;
  FUSEDRNN_INLINE explicit Vec(Real value) : native(value - Native{}) {}
  FUSEDRNN_INLINE explicit Vec(Native value) : native(value) {}
  FUSEDRNN_INLINE static Vec from_bits(Bits bits) { return Vec((Native)bits); }
  FUSEDRNN_INLINE Bits bits() const { return (Bits)native; }

  FUSEDRNN_INLINE static Vec load(const Real* from) {
    Vec loaded;
    __builtin_memcpy(&loaded.native, from, sizeof(Native));
    return loaded;
  }
  FUSEDRNN_INLINE void store(Real* to) const { __builtin_memcpy(to, &native, sizeof(Native)); }

  // The first `count` lanes, 0 <= count <= lanes: no byte past them is touched; the other loaded lanes are zero.
  FUSEDRNN_INLINE static Vec load_partial(const Real* from, int count) { return Vec(native::load_first(from, count)); }
  FUSEDRNN_INLINE void store_partial(Real* to, int count) const { native::store_first(to, count, native); }

  FUSEDRNN_INLINE Vec operator+(Vec other) const { return Vec(native + other.native); }
  FUSEDRNN_INLINE Vec operator-(Vec other) const { return Vec(native - other.native); }
  FUSEDRNN_INLINE Vec operator*(Vec other) const { return Vec(native * other.native); }
  FUSEDRNN_INLINE Vec operator/(Vec other) const { return Vec(native / other.native); }
  FUSEDRNN_INLINE Vec operator-() const { return Vec(-native); }
  FUSEDRNN_INLINE Vec& operator+=(Vec other) { return *this = *this + other; }
  FUSEDRNN_INLINE Vec& operator-=(Vec other) { return *this = *this - other; }

  FUSEDRNN_INLINE Mask operator<(Vec other) const { return (Mask)(native < other.native); }
  FUSEDRNN_INLINE Mask operator>(Vec other) const { return (Mask)(native > other.native); }
  FUSEDRNN_INLINE Mask operator<=(Vec other) const { return (Mask)(native <= other.native); }
  FUSEDRNN_INLINE Mask operator>=(Vec other) const { return (Mask)(native >= other.native); }
  FUSEDRNN_INLINE Mask operator==(Vec other) const { return (Mask)(native == other.native); }
};

template <class Real>
FUSEDRNN_INLINE Vec<Real> select(typename Vec<Real>::Mask mask, Vec<Real> a, Vec<Real> b) {
  return Vec<Real>(mask ? a.native : b.native);
}

// Used several times, a value that was loaded stays in its register instead of being loaded again by each use.
template <class Real>
FUSEDRNN_INLINE void keep_in_register(Vec<Real>& a) {
  native::keep_in_register(a.native);
}

// fma(a, b, c) = a * b + c, rounded once where the instruction set fuses the two. at_least and at_most bound a from one
// side; a nan in `a` stays.
template <class Real>
FUSEDRNN_INLINE Vec<Real> fma(Vec<Real> a, Vec<Real> b, Vec<Real> c) {
  return Vec<Real>(native::fma(a.native, b.native, c.native));
}
template <class Real>
FUSEDRNN_INLINE Vec<Real> at_least(Vec<Real> a, Vec<Real> bound) {
  return Vec<Real>(native::at_least(a.native, bound.native));
}
template <class Real>
FUSEDRNN_INLINE Vec<Real> at_most(Vec<Real> a, Vec<Real> bound) {
  return Vec<Real>(native::at_most(a.native, bound.native));
}

template <class Real>
FUSEDRNN_INLINE typename Vec<Real>::Bits sign_bit() {
  return Vec<Real>(Real(-0.0)).bits();
}

template <class Real>
FUSEDRNN_INLINE Vec<Real> abs(Vec<Real> a) {
  return Vec<Real>::from_bits(a.bits() & ~sign_bit<Real>());
}

template <class Real>
FUSEDRNN_INLINE Vec<Real> copysign(Vec<Real> magnitude, Vec<Real> sign) {
  return Vec<Real>::from_bits(native::choose_bits(sign_bit<Real>(), sign.bits(), magnitude.bits()));
}

// Transposition goes by doubling widths: a step takes the rows i and i + width to the low and high halves of their
// interleaving in blocks of `width` lanes. Below 16 bytes it interleaves within each 16-byte part, which is one
// unpack on every ISA; from there on it exchanges whole parts.
template <class Real>
constexpr int part_lanes = 16 / int(sizeof(Real));

template <class Real>
constexpr int interleaved_lane(int lane, int width, bool high) {
  constexpr int lanes = Vec<Real>::lanes, part = part_lanes<Real>;
  const bool from_second = lane / width % 2 != 0;
  if (width >= part) return from_second ? lanes + lane - (high ? 0 : width) : lane + (high ? width : 0);
  const int block = lane % part / width / 2 + (high ? part / width / 2 : 0);
  return (from_second ? lanes : 0) + lane / part * part + block * width + lane % width;
}

// Lane i is the lane whose number, counted through a and then b, is the i-th of those given. GCC before 12 has only a
// function of its own, which takes the numbers as a vector.
#if __has_builtin(__builtin_shufflevector)
#define FUSEDRNN_SHUFFLE(a, b, ...) __builtin_shufflevector((a).native, (b).native, __VA_ARGS__)
#else
#define FUSEDRNN_SHUFFLE(a, b, ...) __builtin_shuffle((a).native, (b).native, typename Vec<Real>::Bits{__VA_ARGS__})
#endif

template <int width, class Real, int... lane>
FUSEDRNN_INLINE void interleave(Vec<Real>& a, Vec<Real>& b, std::integer_sequence<int, lane...>) {
  const auto low = FUSEDRNN_SHUFFLE(a, b, interleaved_lane<Real>(lane, width, false)...);
  const auto high = FUSEDRNN_SHUFFLE(a, b, interleaved_lane<Real>(lane, width, true)...);
  a = Vec<Real>(low);
  b = Vec<Real>(high);
}

template <int width, class Real, int... pair>
FUSEDRNN_INLINE void interleave_rows(Vec<Real> (&rows)[Vec<Real>::lanes], std::integer_sequence<int, pair...> pairs) {
  constexpr int lanes = Vec<Real>::lanes;
  (interleave<width>(rows[pair / width * 2 * width + pair % width], rows[(pair / width * 2 + 1) * width + pair % width],
                     std::make_integer_sequence<int, lanes>()),
   ...);
  if constexpr (2 * width < lanes) interleave_rows<2 * width>(rows, pairs);
}

// rows[i] lane j becomes rows[j] lane i.
template <class Real>
FUSEDRNN_INLINE void transpose(Vec<Real> (&rows)[Vec<Real>::lanes]) {
  interleave_rows<1>(rows, std::make_integer_sequence<int, Vec<Real>::lanes / 2>());
  if constexpr (part_lanes<Real> == 4) {  // two interleavings within a part leave its columns in the order 0 2 1 3
    for (int row = 0; row < Vec<Real>::lanes; row += 4) {
      const Vec<Real> second = rows[row + 2];
      rows[row + 2] = rows[row + 1];
      rows[row + 1] = second;
    }
  }
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn

#include "cpu/simd/activations.h"
