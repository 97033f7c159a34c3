// The three kinds of numbers that mma.sync multiplies, and how their fragments lie. Sums are float32 for all of them.
//
// Fragments of one mma, D (16, 8) += A (16, kDepth) B (kDepth, 8), by lane with g = lane / 4 and j = lane % 4 (PTX ISA,
// "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8"). A word holds kPerWord values that follow each other along k.
//   A word i: row g + 8 (i % 2), k = kDepth / 2 (i / 2) + j kPerWord ...
//   B word i: column g,          k = kDepth / 2 i       + j kPerWord ...
//   D value i: row g + 8 (i / 2), column 2 j + i % 2
#pragma once
#include "common/number.h"

namespace fusedrnn {
namespace persistent {
namespace {

// Of numbers that an array holds as T: bfloat16, float16, or float for tf32.
template <class T>
struct Operand {
  static constexpr int kDepth = 16, kPerWord = 2;
  static constexpr int kUnits = 16;  // of a block
  // The value as a product takes it.
  FUSEDRNN_INLINE static T factor(T value) { return value; }
  // The word of element(0) and element(1).
  template <class F>
  FUSEDRNN_INLINE static std::uint32_t word(F element) {
    const std::uint32_t low = element(0).bits, high = element(1).bits;
    return low | high << 16;
  }
};

template <>
struct Operand<float> {
  static constexpr int kDepth = 8, kPerWord = 1;
  static constexpr int kUnits = 8;  // twice the bytes: 16 units would not fit into a block's registers at H = 1024
  // Rounded to 10 bits of mantissa, a tie away from zero.
  FUSEDRNN_INLINE static float factor(float value) {
#ifdef __CUDA_ARCH__
    std::uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return float_of(bits);
#else
    return value != value ? value : float_of((bits_of(value) + 0x1000) & ~0x1fffu);
#endif
  }
  template <class F>
  FUSEDRNN_INLINE static std::uint32_t word(F element) {
    return bits_of(element(0));
  }
};

// Where element (k, n) of a right operand lies in the exchange buffer. Its fragments lie in order, for each block of 8
// columns n; two neighbours along k are interleaved, so that a lane reads both with one load of 16 bytes.
template <class T>
FUSEDRNN_INLINE int exchange_index(int k, int n, int depth) {
  using O = Operand<T>;
  const int fragment = k / O::kDepth, in_fragment = k % O::kDepth;
  const int half = in_fragment / (O::kDepth / 2), in_half = in_fragment % (O::kDepth / 2);
  const int lane = n % 8 * 4 + in_half / O::kPerWord;
  const int pair = n / 8 * (depth / O::kDepth / 2) + fragment / 2;
  return ((pair * 32 + lane) * 4 + fragment % 2 * 2 + half) * O::kPerWord + in_half % O::kPerWord;
}

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
