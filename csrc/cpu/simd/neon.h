// 64-bit ARM: NEON.
#pragma once
#include <arm_neon.h>

#include "cpu/simd/native.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
constexpr bool fma_is_fused = true;

namespace native {

using portable::choose_bits, portable::load_first, portable::store_first;

FUSEDRNN_INLINE float32x4_t fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
FUSEDRNN_INLINE float64x2_t fma(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }

FUSEDRNN_INLINE float32x4_t at_least(float32x4_t a, float32x4_t bound) { return vmaxq_f32(a, bound); }
FUSEDRNN_INLINE float64x2_t at_least(float64x2_t a, float64x2_t bound) { return vmaxq_f64(a, bound); }
FUSEDRNN_INLINE float32x4_t at_most(float32x4_t a, float32x4_t bound) { return vminq_f32(a, bound); }
FUSEDRNN_INLINE float64x2_t at_most(float64x2_t a, float64x2_t bound) { return vminq_f64(a, bound); }

template <class Native>
FUSEDRNN_INLINE void keep_in_register(Native& a) {
  asm("" : "+w"(a));
}

}  // namespace native
}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
