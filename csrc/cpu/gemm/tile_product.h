// A product of up to 16 rows by AMX's tiles: four of sums, one of the left operand, two of the right one by turns. The
// left operand is copied a group of the inner dimension at a time, whole and with zeros where it ends: what lies beyond
// it in memory belongs to others, and may be a nan.
#pragma once
#include "cpu/gemm/pair_left.h"
#include "cpu/simd/tiles.h"

#ifdef FUSEDRNN_TILES
namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

using LeftTile = Bfloat16[kTileRows][kPairGroup];

inline void copy_elements(const Bfloat16* from, Index count, Bfloat16* to) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof *to);
}

// Group g of a left operand, of whose rows `count` elements are left, for `rows` rows.
inline void copy_left(const RowPointers<Bfloat16>& left, Index g, int rows, Index count, LeftTile& tile) {
  for (int m = 0; m < rows; ++m) {
    const Bfloat16* from = left.row[m] + left.first_step + g * kPairGroup;
    if (count >= kPairGroup) {
      copy_elements(from, kPairGroup, tile[m]);
    } else {
      __builtin_memset(tile[m], 0, sizeof tile[m]);
      copy_elements(from, count, tile[m]);
    }
  }
}
inline void copy_left(const RunRows<Bfloat16>& left, Index g, int rows, Index count, LeftTile& tile) {
  const Bfloat16* run = left.first + 2 * g * left.stride;
  for (int m = 0; m < rows; ++m) {
    copy_elements(run + m * kBlock, kBlock, tile[m]);
    if (count > kBlock)
      copy_elements(run + left.stride + m * kBlock, kBlock, tile[m] + kBlock);
    else
      __builtin_memset(tile[m] + kBlock, 0, sizeof tile[m] / 2);
  }
}
inline void copy_left(const PairsOfColumns<Bfloat16>& left, Index g, int rows, Index, LeftTile& tile) {
  const Bfloat16* group = left.group - g * kPairGroup * kBlock;
  for (int m = 0; m < rows; ++m)
    for (Index p = 0; p < kGroupPairs; ++p) copy_elements(group + p * kPairBlock + 2 * m, 2, tile[m] + 2 * p);
}

template <class Product>
class TileProduct {
 public:
  TileProduct(int product_rows, const Product& product, Index product_blocks)
      : rows(product_rows), blocks(product_blocks), p(product) {}

  template <class Left>
  void run(const Left& left) {
    constexpr bool backwards = std::is_same_v<Left, PairsOfColumns<Bfloat16>>;
    load_sums<0>();
    Index g = 0;
    for (Index done = 0; done < p.length; done += kPairGroup, ++g) {
      copy_left(left, g, rows, p.length - done, left_tile);
      load_tile<4>(left_tile, sizeof left_tile[0]);
      multiply<0>(p.right + (backwards ? -g : g) * kPairGroup * kBlock);
    }
    store_sums<0>();
  }

 private:
  const int rows;
  const Index blocks;
  const Product& p;
  alignas(64) LeftTile left_tile = {};
  alignas(64) float sums[kTileRows][kBlock] = {};

  template <int kBlockNumber>
  void multiply(const Bfloat16* right) {
    if constexpr (kBlockNumber < 4) {
      if (kBlockNumber == blocks) return;
      load_tile<5 + kBlockNumber % 2>(right + kBlockNumber * p.right_block, 64);
      multiply_tiles<kBlockNumber, 4, 5 + kBlockNumber % 2>();
      multiply<kBlockNumber + 1>(right);
    }
  }
  // A tile is whole: of fewer rows the sums go through a copy.
  template <int kBlockNumber>
  void load_sums() {
    if constexpr (kBlockNumber < 4) {
      if (kBlockNumber == blocks) return;
      const float* from = p.initial[kBlockNumber];
      if (rows == kTileRows) {
        load_tile<kBlockNumber>(from, p.initial_row * long{sizeof(float)});
      } else {
        for (int m = 0; m < rows; ++m) __builtin_memcpy(sums[m], from + m * p.initial_row, sizeof sums[m]);
        load_tile<kBlockNumber>(sums, sizeof sums[0]);
      }
      load_sums<kBlockNumber + 1>();
    }
  }
  template <int kBlockNumber>
  void store_sums() {
    if constexpr (kBlockNumber < 4) {
      if (kBlockNumber == blocks) return;
      float* to = p.out[kBlockNumber];
      if (rows == kTileRows) {
        store_tile<kBlockNumber>(to, p.out_row * long{sizeof(float)});
      } else {
        store_tile<kBlockNumber>(sums, sizeof sums[0]);
        for (int m = 0; m < rows; ++m) __builtin_memcpy(to + m * p.out_row, sums[m], sizeof sums[m]);
      }
      store_sums<kBlockNumber + 1>();
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
#endif
