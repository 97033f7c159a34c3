// The SIMD vocabulary of the CPU engine: Vec<float> and Vec<double>, one register of the ISA this file is compiled for.
// Everything sits in an anonymous namespace and is always inlined: the engine is compiled once per ISA, and a symbol
// shared between those objects could put an AVX-512 body under the feet of an older processor.
#pragma once

#include <cstdint>
#include <utility>

#include "common/attributes.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define FUSEDRNN_AVX512 1
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_X86(operation) _mm512_##operation
#define FUSEDRNN_EXTREME(operation, a, b) _mm512_maskz_##operation(-1, a, b)  // unmasked: a false warning in GCC 12
#elif defined(__AVX2__) && defined(__FMA__)
#define FUSEDRNN_AVX2 1
#define FUSEDRNN_VECTOR_BYTES 32
#define FUSEDRNN_X86(operation) _mm256_##operation
#define FUSEDRNN_EXTREME(operation, a, b) _mm256_##operation(a, b)
#else
#define FUSEDRNN_VECTOR_BYTES 16
#if defined(__SSE2__)
#define FUSEDRNN_X86(operation) _mm_##operation
#define FUSEDRNN_EXTREME(operation, a, b) _mm_##operation(a, b)
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define FUSEDRNN_NEON 1
#endif
#endif

#if defined(FUSEDRNN_NEON)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fusedrnn {
namespace {

// The compiler's own vector types: Native holds the numbers, Bits the same register as signed integers.
template <class Real>
struct Register;
template <>
struct Register<float> {
  typedef float Native __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
};
template <>
struct Register<double> {
  typedef double Native __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
};

template <class Real>
struct Vec {
  using real = Real;
  using Native = typename Register<Real>::Native;
  using Bits = typename Register<Real>::Bits;
  using Mask = Bits;  // all ones where true; & | ~ work on it as they are
  static constexpr int lanes = FUSEDRNN_VECTOR_BYTES / sizeof(Real);

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
  static Vec load_partial(const Real* from, int count);
  void store_partial(Real* to, int count) const;

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

#if defined(FUSEDRNN_AVX512) || defined(FUSEDRNN_AVX2) || defined(FUSEDRNN_NEON)
constexpr bool fma_is_fused = true;
#else
constexpr bool fma_is_fused = false;
#endif

template <class Real>
FUSEDRNN_INLINE Vec<Real> select(typename Vec<Real>::Mask mask, Vec<Real> a, Vec<Real> b) {
  return Vec<Real>(mask ? a.native : b.native);
}

// Used several times, a value that was loaded stays in its register instead of being loaded again by each use.
template <class Real>
FUSEDRNN_INLINE void keep_in_register([[maybe_unused]] Vec<Real>& a) {
#if defined(FUSEDRNN_AVX512)
  asm("" : "+v"(a.native));
#elif defined(FUSEDRNN_X86)
  asm("" : "+x"(a.native));
#elif defined(FUSEDRNN_NEON)
  asm("" : "+w"(a.native));
#endif
}

// fma(a, b, c) = a * b + c, rounded once where the ISA fuses the two. at_least and at_most bound a from one side; a nan
// in `a` stays (x86 gives the second operand of a maximum or minimum when either is nan).
#if defined(FUSEDRNN_X86)

FUSEDRNN_INLINE Vec<float> at_least(Vec<float> a, Vec<float> bound) {
  return Vec<float>(FUSEDRNN_EXTREME(max_ps, bound.native, a.native));
}
FUSEDRNN_INLINE Vec<double> at_least(Vec<double> a, Vec<double> bound) {
  return Vec<double>(FUSEDRNN_EXTREME(max_pd, bound.native, a.native));
}
FUSEDRNN_INLINE Vec<float> at_most(Vec<float> a, Vec<float> bound) {
  return Vec<float>(FUSEDRNN_EXTREME(min_ps, bound.native, a.native));
}
FUSEDRNN_INLINE Vec<double> at_most(Vec<double> a, Vec<double> bound) {
  return Vec<double>(FUSEDRNN_EXTREME(min_pd, bound.native, a.native));
}
#if defined(FUSEDRNN_AVX512) || defined(FUSEDRNN_AVX2)
FUSEDRNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(FUSEDRNN_X86(fmadd_ps)(a.native, b.native, c.native));
}
FUSEDRNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(FUSEDRNN_X86(fmadd_pd)(a.native, b.native, c.native));
}
#else
template <class Real>
FUSEDRNN_INLINE Vec<Real> fma(Vec<Real> a, Vec<Real> b, Vec<Real> c) {
  return a * b + c;
}
#endif

#elif defined(FUSEDRNN_NEON)

FUSEDRNN_INLINE Vec<float> at_least(Vec<float> a, Vec<float> bound) {
  return Vec<float>(vmaxq_f32(a.native, bound.native));
}
FUSEDRNN_INLINE Vec<double> at_least(Vec<double> a, Vec<double> bound) {
  return Vec<double>(vmaxq_f64(a.native, bound.native));
}
FUSEDRNN_INLINE Vec<float> at_most(Vec<float> a, Vec<float> bound) {
  return Vec<float>(vminq_f32(a.native, bound.native));
}
FUSEDRNN_INLINE Vec<double> at_most(Vec<double> a, Vec<double> bound) {
  return Vec<double>(vminq_f64(a.native, bound.native));
}
FUSEDRNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmaq_f32(c.native, a.native, b.native));
}
FUSEDRNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmaq_f64(c.native, a.native, b.native));
}

#else

template <class Real>
FUSEDRNN_INLINE Vec<Real> at_least(Vec<Real> a, Vec<Real> bound) {
  return select(bound > a, bound, a);
}
template <class Real>
FUSEDRNN_INLINE Vec<Real> at_most(Vec<Real> a, Vec<Real> bound) {
  return select(bound < a, bound, a);
}
template <class Real>
FUSEDRNN_INLINE Vec<Real> fma(Vec<Real> a, Vec<Real> b, Vec<Real> c) {
  return a * b + c;
}

#endif

#if defined(FUSEDRNN_AVX512)

template <>
FUSEDRNN_INLINE Vec<float> Vec<float>::load_partial(const float* from, int count) {
  return Vec(_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from));
}
template <>
FUSEDRNN_INLINE Vec<double> Vec<double>::load_partial(const double* from, int count) {
  return Vec(_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), from));
}
template <>
FUSEDRNN_INLINE void Vec<float>::store_partial(float* to, int count) const {
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), native);
}
template <>
FUSEDRNN_INLINE void Vec<double>::store_partial(double* to, int count) const {
  _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1), native);
}

#elif defined(FUSEDRNN_AVX2)

FUSEDRNN_INLINE __m256i first_floats(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FUSEDRNN_INLINE __m256i first_doubles(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
template <>
FUSEDRNN_INLINE Vec<float> Vec<float>::load_partial(const float* from, int count) {
  return Vec(_mm256_maskload_ps(from, first_floats(count)));
}
template <>
FUSEDRNN_INLINE Vec<double> Vec<double>::load_partial(const double* from, int count) {
  return Vec(_mm256_maskload_pd(from, first_doubles(count)));
}
template <>
FUSEDRNN_INLINE void Vec<float>::store_partial(float* to, int count) const {
  _mm256_maskstore_ps(to, first_floats(count), native);
}
template <>
FUSEDRNN_INLINE void Vec<double>::store_partial(double* to, int count) const {
  _mm256_maskstore_pd(to, first_doubles(count), native);
}

#else

template <class Real>
FUSEDRNN_INLINE Vec<Real> Vec<Real>::load_partial(const Real* from, int count) {
  Vec loaded(Native{});
  for (int lane = 0; lane < lanes; lane++) {
    if (lane < count) loaded.native[lane] = from[lane];
  }
  return loaded;
}
template <class Real>
FUSEDRNN_INLINE void Vec<Real>::store_partial(Real* to, int count) const {
  for (int lane = 0; lane < lanes; lane++) {
    if (lane < count) to[lane] = native[lane];
  }
}

#endif

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
  const auto mask = sign_bit<Real>();
#if defined(FUSEDRNN_AVX512)
  constexpr int first_selects = 0xca;  // the truth table of first ? second : third
  return Vec<Real>::from_bits((typename Vec<Real>::Bits)_mm512_ternarylogic_epi64(
      (__m512i)mask, (__m512i)sign.native, (__m512i)magnitude.native, first_selects));
#else
  return Vec<Real>::from_bits((magnitude.bits() & ~mask) | (sign.bits() & mask));
#endif
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
}  // namespace fusedrnn

#include "cpu/simd/activations.h"
