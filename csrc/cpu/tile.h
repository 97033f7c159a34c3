// The micro-kernel: a tile of about 6 rows x 4 vectors of a product stays in registers over the whole inner dimension.
#pragma once
#include "core/arguments.h"
#include "cpu/vec.h"

namespace fusedrnn {
namespace {

// 6 x 4 accumulators, 4 right-hand vectors and a broadcast fill 32 registers; 6 x 2, 2 and 1 fill 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
constexpr int kTileRows = 6;
// Steps of the inner dimension by which the right operand is fetched ahead from the second-level cache.
constexpr Index kPrefetchSteps = 16;

// How a tile's vectors lie over blocks of 16 columns.
template <class Real>
struct TileShape {
  static constexpr int lanes = Vec<Real>::lanes;
  static constexpr int vectors_of_block = kBlock / lanes;
  static constexpr int parts = vectors_of_block < kTileVectors ? vectors_of_block : kTileVectors;  // of one block
  static constexpr int blocks = kTileVectors / parts;
  static constexpr int passes = vectors_of_block / parts;  // tiles that one block needs
};

// out(m, i) = initial(m, i) + sum over k of left(m, k) right(i, k), in the order of k; i counts blocks of 16 columns.
template <class Real>
struct Product {
  Index k_blocks = 1, k_length;  // the inner dimension: k_blocks runs of k_length
  Index left_block = 0;          // from one run of a left row to the next
  const Real* right;             // block i, step k: right + i * right_block + k * right_step
  Index right_block, right_step = kBlock;
  const Real* const* initial;  // block i, row m: initial[i] + m * initial_row
  Index initial_row;
  Real* const* out;  // block i, row m: out[i] + m * out_row
  Index out_row;
};

// Left operand given by a pointer to each row.
template <class Real, int Rows>
struct LeftRows {
  const Real* row[Rows];
  Index block;
  explicit LeftRows(const Real* const* rows, Index left_block) : block(left_block) {
    for (int m = 0; m < Rows; ++m) row[m] = rows[m];
  }
  FUSEDRNN_INLINE Real at(int m, Index k) const { return row[m][k]; }
  FUSEDRNN_INLINE void next_block() {
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) row[m] += block;
  }
};

// Left operand read down its columns: the transposed product of the weight gradients.
template <class Real>
struct LeftColumns {
  const Real* column;
  Index step;
  FUSEDRNN_INLINE Real at(int m, Index k) const { return column[k * step + m]; }
  FUSEDRNN_INLINE void next_block() {}
};

template <class Real, int Rows, int Blocks, class Left>
FUSEDRNN_NOINLINE void tile(Left left, const Product<Real>& p, Index first_block, Index column) {
  using V = Vec<Real>;
  constexpr int parts = TileShape<Real>::parts;
  V sum[Rows][Blocks * parts];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < Blocks * parts; ++v)
      sum[m][v] = V::load(p.initial[first_block + v / parts] + m * p.initial_row + column + v % parts * V::lanes);
  const Real* right = p.right + first_block * p.right_block + column;
  const Index right_block = p.right_block, right_step = p.right_step, k_length = p.k_length;
  for (Index block = 0; block < p.k_blocks; ++block) {
    for (Index k = 0; k < k_length; ++k) {
      V b[Blocks * parts];
#pragma GCC unroll 8
      for (int v = 0; v < Blocks * parts; ++v) b[v] = V::load(right + v / parts * right_block + v % parts * V::lanes);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const V a(left.at(m, k));
#pragma GCC unroll 8
        for (int v = 0; v < Blocks * parts; ++v) sum[m][v] = fma(a, b[v], sum[m][v]);
      }
#pragma GCC unroll 8
      for (int v = 0; v < Blocks * parts; ++v)
        __builtin_prefetch(right + v / parts * right_block + v % parts * V::lanes + kPrefetchSteps * right_step);
      right += right_step;
    }
    left.next_block();
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < Blocks * parts; ++v)
      sum[m][v].store(p.out[first_block + v / parts] + m * p.out_row + column + v % parts * V::lanes);
}

// Covers `blocks` blocks of columns with tiles.
template <class Real, int Rows, class Left>
inline void tile_blocks(const Left& left, const Product<Real>& p, Index blocks) {
  using Shape = TileShape<Real>;
  constexpr int width = Shape::parts * Shape::lanes;
  Index i = 0;
  for (; i + Shape::blocks <= blocks; i += Shape::blocks)
    for (int pass = 0; pass < Shape::passes; ++pass) tile<Real, Rows, Shape::blocks>(left, p, i, pass * width);
  if constexpr (Shape::blocks > 1) {
    if (blocks - i == 1) tile<Real, Rows, 1>(left, p, i, 0);
    if constexpr (Shape::blocks == 4) {
      if (blocks - i == 2) tile<Real, Rows, 2>(left, p, i, 0);
      if (blocks - i == 3) tile<Real, Rows, 3>(left, p, i, 0);
    }
  }
}

}  // namespace
}  // namespace fusedrnn
