// x86-64-v3: AVX2 and FMA.
#pragma once
#include <immintrin.h>

#include "cpu/simd/native.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
constexpr bool fma_is_fused = true;

namespace native {

using portable::choose_bits;

FUSEDRNN_INLINE __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
FUSEDRNN_INLINE __m256d fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }

FUSEDRNN_INLINE __m256 at_least(__m256 a, __m256 bound) { return _mm256_max_ps(bound, a); }
FUSEDRNN_INLINE __m256d at_least(__m256d a, __m256d bound) { return _mm256_max_pd(bound, a); }
FUSEDRNN_INLINE __m256 at_most(__m256 a, __m256 bound) { return _mm256_min_ps(bound, a); }
FUSEDRNN_INLINE __m256d at_most(__m256d a, __m256d bound) { return _mm256_min_pd(bound, a); }

template <class Native>
FUSEDRNN_INLINE void keep_in_register(Native& a) {
  asm("" : "+x"(a));
}

FUSEDRNN_INLINE __m256i first_floats(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FUSEDRNN_INLINE __m256i first_doubles(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
FUSEDRNN_INLINE __m256 load_first(const float* from, int count) {
  return _mm256_maskload_ps(from, first_floats(count));
}
FUSEDRNN_INLINE __m256d load_first(const double* from, int count) {
  return _mm256_maskload_pd(from, first_doubles(count));
}
FUSEDRNN_INLINE void store_first(float* to, int count, __m256 a) { _mm256_maskstore_ps(to, first_floats(count), a); }
FUSEDRNN_INLINE void store_first(double* to, int count, __m256d a) { _mm256_maskstore_pd(to, first_doubles(count), a); }

}  // namespace native
}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
