// x86-64-v2, and any x86-64: SSE2.
#pragma once
#include <immintrin.h>

#include "cpu/simd/native.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
constexpr bool fma_is_fused = false;

namespace native {

using portable::choose_bits, portable::fma, portable::load_first, portable::store_first;

FUSEDRNN_INLINE __m128 at_least(__m128 a, __m128 bound) { return _mm_max_ps(bound, a); }
FUSEDRNN_INLINE __m128d at_least(__m128d a, __m128d bound) { return _mm_max_pd(bound, a); }
FUSEDRNN_INLINE __m128 at_most(__m128 a, __m128 bound) { return _mm_min_ps(bound, a); }
FUSEDRNN_INLINE __m128d at_most(__m128d a, __m128d bound) { return _mm_min_pd(bound, a); }

template <class Native>
FUSEDRNN_INLINE void keep_in_register(Native& a) {
  asm("" : "+x"(a));
}

}  // namespace native
}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
