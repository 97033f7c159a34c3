// Words: a vector of pairs of bfloat16, two neighbours in each lane of 32 bits, the first in its lower half.
#pragma once
#include "cpu/simd/storage.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Whether the instruction set multiplies and adds both halves of a word at once.
#ifdef __AVX512BF16__
constexpr bool kDotsWords = true;
#else
constexpr bool kDotsWords = false;
#endif

FUSEDRNN_INLINE WideBits load_words(const Bfloat16* from) {
  WideBits words;
  __builtin_memcpy(&words, from, sizeof words);
  return words;
}
FUSEDRNN_INLINE void store_words(WideBits words, Bfloat16* to) { __builtin_memcpy(to, &words, sizeof words); }
// The first `count` elements, half words; the others are zero, and no byte past them is touched.
FUSEDRNN_INLINE WideBits load_words_partial(const Bfloat16* from, Index count) {
  WideBits words = {};
  __builtin_memcpy(&words, from, static_cast<std::size_t>(count) * sizeof *from);
  return words;
}

// One word in every lane: two elements, or a single one and zero.
FUSEDRNN_INLINE WideBits word_everywhere(const Bfloat16* from) {
  std::uint32_t word;
  __builtin_memcpy(&word, from, sizeof word);
  return word - WideBits{};
}
FUSEDRNN_INLINE WideBits single_everywhere(const Bfloat16* from) { return std::uint32_t(from->bits) - WideBits{}; }

// A half of every word, as a number.
template <int kHalf>
FUSEDRNN_INLINE Vec<float> half_of(WideBits words) {
  return Vec<float>((Vec<float>::Native)(kHalf == 0 ? words << 16 : words & 0xffff0000u));
}

// Rows of as many elements as words have lanes become the halves of words.
FUSEDRNN_INLINE WideBits words_of(const Bfloat16* first, const Bfloat16* second, int count) {
  NarrowBits low = {}, high = {};
  if (count == Vec<float>::lanes) {  // a copy of another length calls a function
    if (first) __builtin_memcpy(&low, first, sizeof low);
    if (second) __builtin_memcpy(&high, second, sizeof high);
  } else {
    if (first) __builtin_memcpy(&low, first, static_cast<std::size_t>(count) * sizeof *first);
    if (second) __builtin_memcpy(&high, second, static_cast<std::size_t>(count) * sizeof *second);
  }
  return __builtin_convertvector(low, WideBits) | __builtin_convertvector(high, WideBits) << 16;
}

#ifdef __AVX512BF16__
// sum + a0 b0 + a1 b1 of each lane's halves, in an order and with roundings of the instruction's own.
FUSEDRNN_INLINE Vec<float> dot(WideBits a, WideBits b, Vec<float> sum) {
  return Vec<float>(native::dot((__m512i)a, (__m512i)b, sum.native));
}
#endif

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
