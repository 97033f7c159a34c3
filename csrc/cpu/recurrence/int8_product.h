// Products of rows of float32 with weights of 8 bits. A row is rounded to 16 bits, with one scale; its sums with the
// weights are exact integers, over parts of the inner dimension, so that every instruction set has the same ones.
#pragma once
#include "common/int8_layout.h"
#include "cpu/recurrence/step.h"
#include "cpu/simd/dot.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Rows whose magnitude is nowhere larger count as zero: the inverse of their scale would be infinite.
constexpr float kInt8Tiny = 0x1p-100f;

// A row's scale and numbers, in groups of four.
struct Int8Row {
  const std::uint64_t* groups;
  float scale;
};

// The bits of the largest magnitude; those of a nan are above infinity's.
inline std::uint32_t largest_magnitude(const float* row, Index count) {
  using V = Vec<float>;
  typename V::Bits largest = {};
  for (Index k = 0; k < count; k += V::lanes) {
    const V values = k + V::lanes <= count ? V::load(row + k) : V::load_partial(row + k, static_cast<int>(count - k));
    const typename V::Bits bits = abs(values).bits();
    largest = bits > largest ? bits : largest;
  }
  std::uint32_t lane[V::lanes], found = 0;
  __builtin_memcpy(lane, &largest, sizeof lane);
  for (const std::uint32_t bits : lane) found = bits > found ? bits : found;
  return found;
}

// Four times `groups` numbers, row[k] * inverse to the nearest integer, the even one in a tie; 0 past `count`.
inline void round_row(const float* row, Index count, float inverse, std::uint64_t* groups) {
  using V = Vec<float>;
  const V factor(inverse), round(0x1.8p23f);  // a sum's lowest bits are then the integer
  auto* numbers = reinterpret_cast<unsigned char*>(groups);
  for (Index k = 0; k < count; k += V::lanes, numbers += V::lanes * sizeof(std::uint16_t)) {
    const int lanes = static_cast<int>(smaller(V::lanes, count - k));
    const V values = lanes == V::lanes ? V::load(row + k) : V::load_partial(row + k, lanes);
    const NarrowBits bits = __builtin_convertvector((WideBits)(values * factor + round).native, NarrowBits);
    __builtin_memcpy(numbers, &bits, static_cast<std::size_t>((lanes + 3) / 4) * sizeof *groups);
  }
  const Index size = Int8Panel::groups_of(count);
  for (Index g = 0; g < size; ++g) groups[g] = DotSum::arrange(groups[g]);
}

// At least `least` is taken for the largest magnitude. A row with nan or infinity has the scale nan, and zeros.
FUSEDRNN_NOINLINE inline Int8Row quantized(const float* row, Index count, float least, std::uint64_t* groups) {
  const std::uint32_t bits = largest_magnitude(row, count);
  if (bits >= 0x7f800000) {
    for (Index g = 0; g < Int8Panel::groups_of(count); ++g) groups[g] = DotSum::arrange(0);
    return {groups, float_of(0x7fc00000)};
  }
  const float largest = float_of(bits) > least ? float_of(bits) : least;
  const bool tiny = largest < kInt8Tiny;
  round_row(row, count, tiny ? 0 : 32767 / largest, groups);
  return {groups, tiny ? 0 : largest / 32767};
}

// Vectors that a tile adds up at once for each of its rows, and its rows.
constexpr int kInt8Columns = 4, kInt8Rows = 2;

// The sums of kColumns vectors of units, from byte `offset` of each line group on, to `sums`, one row's `row_stride`
// floats from the other's.
template <int kRows, int kColumns>
FUSEDRNN_NOINLINE void multiply_int8(const Int8Panel& panel, Index offset, const Int8Row* rows, float* sums,
                                     Index row_stride) {
  using V = Vec<float>;
  const Index line = panel.slots * kInt8Line;
  const unsigned char* from = panel.data + offset;
  Index done = 0;
  for (Index k = 0; k < panel.inner; k += kInt8Part) {
    DotSum sum[kRows][kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) sum[m][c].begin(from + c * kVectorBytes);
    from += line;
    const Index end = Int8Panel::groups_of(smaller(panel.inner, k + kInt8Part));
    for (; done < end; ++done, from += line) {
      Words first[kRows], second[kRows];
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const std::uint64_t group = rows[m].groups[done];
        first[m] = all_words(static_cast<std::uint32_t>(group));
        second[m] = all_words(static_cast<std::uint32_t>(group >> 32));
      }
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        const DotSum::Weights weights = DotSum::load(from + c * kVectorBytes);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) sum[m][c].add(weights, first[m], second[m]);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        float* to = sums + m * row_stride + c * V::lanes;
        const V part = to_floats(sum[m][c].total());
        (k > 0 ? V::load(to) + part : part).store(to);
      }
  }
}

template <int kRows>
inline void multiply_int8_rows(const Int8Panel& panel, Slots slots, const Int8Row* rows, float* sums,
                               Index row_stride) {
  constexpr int of_slot = static_cast<int>(kInt8Line) / kVectorBytes;
  for (int c = 0, count; c < slots.count * of_slot; c += count) {
    const Index offset = slots.first * kInt8Line + c * kVectorBytes;
    float* to = sums + c * Vec<float>::lanes;
    count = static_cast<int>(smaller(kInt8Columns, slots.count * of_slot - c));
    if (count == 4)
      multiply_int8<kRows, 4>(panel, offset, rows, to, row_stride);
    else if (count == 3)
      multiply_int8<kRows, 3>(panel, offset, rows, to, row_stride);
    else if (count == 2)
      multiply_int8<kRows, 2>(panel, offset, rows, to, row_stride);
    else
      multiply_int8<kRows, 1>(panel, offset, rows, to, row_stride);
  }
}

// Sums of `count` <= kInt8Rows rows with the panel's `slots`: [row][slot][16].
inline void multiply_int8(const Int8Panel& panel, Slots slots, const Int8Row* rows, int count, float* sums) {
  const Index row_stride = slots.count * kBlock;
  if (count == kInt8Rows)
    multiply_int8_rows<kInt8Rows>(panel, slots, rows, sums, row_stride);
  else
    multiply_int8_rows<1>(panel, slots, rows, sums, row_stride);
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
