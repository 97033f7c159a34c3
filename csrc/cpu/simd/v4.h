// x86-64-v4: AVX-512 F, DQ, BW and VL.
#pragma once
#include <immintrin.h>

#include "cpu/simd/native.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
constexpr bool fma_is_fused = true;

namespace native {

FUSEDRNN_INLINE __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
FUSEDRNN_INLINE __m512d fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }

// Under a mask of all lanes: without one GCC 12 gives a false warning.
FUSEDRNN_INLINE __m512 at_least(__m512 a, __m512 bound) { return _mm512_maskz_max_ps(-1, bound, a); }
FUSEDRNN_INLINE __m512d at_least(__m512d a, __m512d bound) { return _mm512_maskz_max_pd(-1, bound, a); }
FUSEDRNN_INLINE __m512 at_most(__m512 a, __m512 bound) { return _mm512_maskz_min_ps(-1, bound, a); }
FUSEDRNN_INLINE __m512d at_most(__m512d a, __m512d bound) { return _mm512_maskz_min_pd(-1, bound, a); }

template <class Bits>
FUSEDRNN_INLINE Bits choose_bits(Bits mask, Bits a, Bits b) {
  constexpr int first_selects = 0xca;  // the truth table of first ? second : third
  return (Bits)_mm512_ternarylogic_epi64((__m512i)mask, (__m512i)a, (__m512i)b, first_selects);
}

template <class Native>
FUSEDRNN_INLINE void keep_in_register(Native& a) {
  asm("" : "+v"(a));
}

#ifdef __AVX512BF16__
FUSEDRNN_INLINE __m512 dot(__m512i a, __m512i b, __m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
FUSEDRNN_INLINE __m256i narrowed(__m512 a) { return (__m256i)_mm512_cvtneps_pbh(a); }
#endif

FUSEDRNN_INLINE __m512 load_first(const float* from, int count) {
  return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
}
FUSEDRNN_INLINE __m512d load_first(const double* from, int count) {
  return _mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), from);
}
FUSEDRNN_INLINE void store_first(float* to, int count, __m512 a) {
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), a);
}
FUSEDRNN_INLINE void store_first(double* to, int count, __m512d a) {
  _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1), a);
}

}  // namespace native
}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
