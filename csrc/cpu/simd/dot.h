// Sums of products of 8-bit weights with 16-bit numbers, exact in 32 bits. A word holds four weights of a unit; a
// vector of words is multiplied with the same four numbers, packed into two words in the way that the instruction set
// multiplies them.
#pragma once
#include <cstring>

#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t SignedWords __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t HalfWords __attribute__((vector_size(kVectorBytes)));
typedef std::int16_t SignedHalfWords __attribute__((vector_size(kVectorBytes)));

FUSEDRNN_INLINE Words load_words(const void* from) {
  Words words;
  __builtin_memcpy(&words, from, sizeof words);
  return words;
}
FUSEDRNN_INLINE Words all_words(std::uint32_t value) { return value - Words{}; }

#if defined(__AVX512VNNI__)

// Unsigned bytes with signed ones: the numbers go in as high and low bytes of number + 32768, so that a sum begins with
// -128 times the sum of its weights in place of 0.
class DotSum {
 public:
  static constexpr const char* instruction = "vpdpbusd";
  using Weights = Words;
  static FUSEDRNN_INLINE Weights load(const void* from) { return load_words(from); }
  // Numbers, from the lowest 16 bits on, to the first word and, above it, the second.
  static FUSEDRNN_INLINE std::uint64_t arrange(std::uint64_t numbers) {
    numbers ^= 0x8000800080008000u;
    return even_bytes(numbers >> 8) | even_bytes(numbers) << 32;
  }

  FUSEDRNN_INLINE void begin(const void* minus_sums) {
    high_ = load_words(minus_sums);
    low_ = Words{};
  }
  FUSEDRNN_INLINE void add(Weights weights, Words first, Words second) {
    high_ = (Words)_mm512_dpbusd_epi32((__m512i)high_, (__m512i)first, (__m512i)weights);
    low_ = (Words)_mm512_dpbusd_epi32((__m512i)low_, (__m512i)second, (__m512i)weights);
  }
  FUSEDRNN_INLINE Words total() const { return (high_ << 8) + low_; }

 private:
  Words high_, low_;

  static FUSEDRNN_INLINE std::uint64_t even_bytes(std::uint64_t from) {
    from &= 0x00ff00ff00ff00ffu;
    from = (from | from >> 8) & 0x0000ffff0000ffffu;
    return (from | from >> 16) & 0xffffffffu;
  }
};

#else

// The sum of the products of a word's two halves with those of another's.
FUSEDRNN_INLINE Words multiply_halves(SignedHalfWords a, SignedHalfWords b) {
#if defined(__AVX512BW__)
  return (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Words)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const SignedWords low = (SignedWords)((Words)a << 16) >> 16, other = (SignedWords)((Words)b << 16) >> 16;
  return (Words)(low * other + ((SignedWords)a >> 16) * ((SignedWords)b >> 16));
#endif
}

// Signed halves: the weights of numbers 0 and 2 are multiplied with the first word, those of 1 and 3 with the second.
class DotSum {
 public:
#if defined(__SSE2__)
  static constexpr const char* instruction = "pmaddwd";
#else
  static constexpr const char* instruction = "plain";
#endif
  struct Weights {
    SignedHalfWords even, odd;
  };
  static FUSEDRNN_INLINE Weights load(const void* from) {
    const HalfWords both = (HalfWords)load_words(from);
    return {(SignedHalfWords)(both << 8) >> 8, (SignedHalfWords)both >> 8};
  }
  static FUSEDRNN_INLINE std::uint64_t arrange(std::uint64_t numbers) {
    return (numbers & 0xffff00000000ffffu) | (numbers >> 16 & 0xffff0000u) | (numbers << 16 & 0x0000ffff00000000u);
  }

  FUSEDRNN_INLINE void begin(const void*) { sum_ = Words{}; }
  FUSEDRNN_INLINE void add(const Weights& weights, Words first, Words second) {
    sum_ += multiply_halves(weights.even, (SignedHalfWords)first);
    sum_ += multiply_halves(weights.odd, (SignedHalfWords)second);
  }
  FUSEDRNN_INLINE Words total() const { return sum_; }

 private:
  Words sum_;
};

#endif

FUSEDRNN_INLINE Vec<float> to_floats(Words words) {
  return Vec<float>(__builtin_convertvector((SignedWords)words, Vec<float>::Native));
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
