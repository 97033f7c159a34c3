// How the parameters of one direction of one layer lie in memory with weights of 8 bits; on every instruction set the
// same. First, for each block of 16 units, float32 constants: biases [slot][16], the per-unit parameter [row][16], the
// scales of the rows of weight_ih [slot][16] and, for each phase, of weight_hh [slot][16]. Then panels, of weight_ih
// and of each phase of weight_hh, for each block of units: the inner dimension in parts of 512, each [slot][16] of
// int32, -128 times the sum of the part's weights, and [group of four][slot][16][4] of int8.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {

// A sum of so many products of -128 .. 127 with -32767 .. 32767 fits 32 bits.
constexpr Index kInt8Part = 512;
// A vector of weights: a word of four for each of 16 units.
constexpr Index kInt8Line = 64;

// The weights of one product.
struct Int8Panel {
  const unsigned char* data = nullptr;
  Index inner = 0;
  int slots = 0;

  FUSEDRNN_INLINE static Index groups_of(Index inner) { return (inner + 3) / 4; }
  FUSEDRNN_INLINE static Index parts_of(Index inner) { return (inner + kInt8Part - 1) / kInt8Part; }
  FUSEDRNN_INLINE static Index bytes_of(Index inner, int slots) {
    return (parts_of(inner) + groups_of(inner)) * slots * kInt8Line;
  }
  // Where the part lies that holds the k-th element of the inner dimension, and the line of that element's group.
  FUSEDRNN_INLINE Index part_at(Index k) const { return k / kInt8Part * (1 + kInt8Part / 4) * slots * kInt8Line; }
  FUSEDRNN_INLINE Index line_at(Index k, int slot) const {
    return part_at(k) + ((1 + k % kInt8Part / 4) * slots + slot) * kInt8Line;
  }
};

struct Int8Layout {
  const CellTraits& traits;
  Index input_size, hidden_size;

  FUSEDRNN_INLINE Index blocks() const { return blocks_of(hidden_size); }
  // Constants of a block, in floats from its first.
  FUSEDRNN_INLINE Index bias_at(int slot) const { return slot * kBlock; }
  FUSEDRNN_INLINE Index per_unit_at(int row) const { return (traits.slots + row) * kBlock; }
  FUSEDRNN_INLINE Index input_scale_at(int slot) const { return (traits.slots + traits.per_unit.rows + slot) * kBlock; }
  FUSEDRNN_INLINE Index recurrent_scale_at(int phase, int slot) const {
    Index at = input_scale_at(traits.input.count);
    for (int earlier = 0; earlier < phase; ++earlier) at += traits.recurrent[earlier].count * kBlock;
    return at + slot * kBlock;
  }
  FUSEDRNN_INLINE Index constants() const { return recurrent_scale_at(traits.phases, 0); }

  // In bytes from the beginning.
  FUSEDRNN_INLINE Index constants_at(Index block) const {
    return block * constants() * static_cast<Index>(sizeof(float));
  }
  FUSEDRNN_INLINE Index input_at(Index block) const {
    return constants_at(blocks()) + block * Int8Panel::bytes_of(input_size, traits.input.count);
  }
  FUSEDRNN_INLINE Index recurrent_at(int phase, Index block) const {
    Index at = input_at(blocks());
    for (int earlier = 0; earlier < phase; ++earlier)
      at += blocks() * Int8Panel::bytes_of(hidden_size, traits.recurrent[earlier].count);
    return at + block * Int8Panel::bytes_of(hidden_size, traits.recurrent[phase < traits.phases ? phase : 0].count);
  }
  FUSEDRNN_INLINE Index bytes() const { return recurrent_at(traits.phases, 0); }
};

}  // namespace fusedrnn
