// The micro-kernel: a tile of about 6 rows x 4 vectors of a product stays in registers over the whole inner dimension.
#pragma once
#include "common/arguments.h"
#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// 6 x 4 accumulators, 4 right-hand vectors and a broadcast fill 32 registers; 6 x 2, 2 and 1 fill 16.
constexpr int kTileVectors = kRegisters == 32 ? 4 : 2;
constexpr int kTileRows = 6;
// Steps of the inner dimension by which the right operand is fetched ahead from the second-level cache.
constexpr Index kPrefetchSteps = 16;
// Tiles of fewer rows are bound by the loads themselves, and a prefetch is one more.
constexpr int kPrefetchRows = 4;

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
  Index length;       // of the inner dimension, 1 or more; with LeftRuns a multiple of 16
  const Real* right;  // block i, step k: right + i * right_block + k * left.right_step
  Index right_block;
  const Real* const* initial;  // block i, row m: initial[i] + m * initial_row
  Index initial_row;
  Real* const* out;  // block i, row m: out[i] + m * out_row
  Index out_row;
};

// Left operand given by a pointer to each row.
template <class Real, int Rows>
struct LeftRows {
  static constexpr Index run = 1, right_step = kBlock;
  const Real* row[Rows];
  Index reached = 0;
  LeftRows(const Real* const* rows, Index first_step) {
    for (int m = 0; m < Rows; ++m) row[m] = rows[m] + first_step;
  }
  FUSEDRNN_INLINE Real at(int m, Index) const { return row[m][reached]; }
  FUSEDRNN_INLINE void next_run() { ++reached; }
};

// Left operand in runs of 16 steps, in each of which the rows lie one after the other.
template <class Real, int Rows>
struct LeftRuns {
  static constexpr Index run = kBlock, right_step = kBlock;
  const Real* first;  // row 0 of the first run
  Index stride;       // from one run to the next
  FUSEDRNN_INLINE Real at(int m, Index k) const { return first[m * kBlock + k]; }
  FUSEDRNN_INLINE void next_run() {
    first += stride;
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) __builtin_prefetch(first + stride + m * kBlock);
  }
};

// Left operand read up its columns, from the last step to the first: the transposed product of the weight gradients.
template <class Real>
struct LeftColumns {
  static constexpr Index run = 1, right_step = -kBlock;
  const Real* last;  // columns of the last step; one step before lies 16 before
  FUSEDRNN_INLINE Real at(int m, Index) const { return last[m]; }
  FUSEDRNN_INLINE void next_run() { last -= kBlock; }
};

template <class Real, int Rows, int Blocks, class Left>
FUSEDRNN_NOINLINE void tile(Left left, const Product<Real>& p, Index first_block, Index column) {
  using V = Vec<Real>;
  constexpr int parts = TileShape<Real>::parts, vectors = Blocks * parts;
  V sum[Rows][vectors];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
      sum[m][v] = V::load(p.initial[first_block + v / parts] + m * p.initial_row + column + v % parts * V::lanes);
  const Real* right = p.right + first_block * p.right_block + column;
  const Index right_block = p.right_block;
  Index runs = p.length / Left::run;
  // The test stands at the end: before a loop that might not run, the compiler would copy all sums.
  do {
#pragma GCC unroll 4
    for (Index k = 0; k < Left::run; ++k) {
      V b[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        b[v] = V::load(right + v / parts * right_block + v % parts * V::lanes);
        keep_in_register(b[v]);
      }
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const V a(left.at(m, k));
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[m][v] = fma(a, b[v], sum[m][v]);
      }
      if constexpr (Rows >= kPrefetchRows) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v)
          __builtin_prefetch(right + v / parts * right_block + v % parts * V::lanes + kPrefetchSteps * left.right_step);
      }
      right += left.right_step;
    }
    left.next_run();
  } while (--runs > 0);
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
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
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
