// Products in tiles of rows: what they are made of, and what the drivers ask of the micro-kernel that multiplies.
//
// A micro-kernel is a struct, which the drivers take as their parameter Tile:
//   Left, Right      elements of the operands in the engine's own arrays: h, gradients of gates; packed weights, panels
//   Sum              what products are added up in
//   Product          its Product<Right, Sum>
//   OuterLeft        the left operand of an outer product: columns of rows of Left
//   pairs            whether two steps of the inner dimension lie side by side in right operands, [2 steps][16][2]; the
//                    rows of an outer product then come in whole groups of kPairGroup
//   MR               most rows of a run
//   NR               most columns of a run, whole blocks of 16
//   KC               steps of the inner dimension that all rows pass before the next ones; a multiple of 16
//   Session          lives while a thread runs products
//   Ready            a right operand made ready for many rows, by make_ready(right, right_block, length, blocks, rows,
//                    scratch); use(ready, block, step, product) lets a product read it from there on
//   pack_forward, pack_backward
//                    write a part of a weight matrix in the order in which runs read it
//   run(rows, left, product, blocks)
//                    one product: `rows` <= MR rows times `blocks` <= NR / 16 blocks of columns
// The bits of a sum depend on the micro-kernel: each adds up in an order of its own.
#pragma once
#include "common/arguments.h"
#include "common/number.h"
#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// out(m, i) = initial(m, i) + sum over k of left(m, k) right(i, k), in the order of k; i counts blocks of 16 columns.
template <class Right, class Sum>
struct Product {
  Index length;        // of the inner dimension, 1 or more; with LeftRuns a multiple of 16
  const Right* right;  // block i, step k: right + i * right_block + k * left.right_step
  Index right_block;
  const Sum* const* initial;  // block i, row m: initial[i] + m * initial_row
  Index initial_row;
  Sum* const* out;  // block i, row m: out[i] + m * out_row
  Index out_row;
};

// Rows of the next run when `rows` are left: even tiles, so that no tile is a thin remainder.
template <class Tile, int kMost = Tile::MR>
int tile_rows(Index rows) {
  const Index tiles = (rows + kMost - 1) / kMost;
  return static_cast<int>((rows + tiles - 1) / tiles);
}

// Sums that begin at nothing.
alignas(64) const float kZerosFloat[kBlock] = {};
alignas(64) const double kZerosDouble[kBlock] = {};
inline const float* zeros(float) { return kZerosFloat; }
inline const double* zeros(double) { return kZerosDouble; }

// Left operand given by a pointer to each row.
template <class T, int Rows>
struct LeftRows {
  static constexpr Index run = 1, right_step = kBlock;
  const T* row[Rows];
  Index reached = 0;
  LeftRows(const T* const* rows, Index first_step) {
    for (int m = 0; m < Rows; ++m) row[m] = rows[m] + first_step;
  }
  FUSEDRNN_INLINE Accumulator<T> at(int m, Index) const { return widen(row[m][reached]); }
  FUSEDRNN_INLINE void next_run() { ++reached; }
};

// Left operand in runs of 16 steps, in each of which the rows lie one after the other.
template <class T, int Rows>
struct LeftRuns {
  static constexpr Index run = kBlock, right_step = kBlock;
  const T* first;  // row 0 of the first run
  Index stride;    // from one run to the next
  FUSEDRNN_INLINE Accumulator<T> at(int m, Index k) const { return widen(first[m * kBlock + k]); }
  FUSEDRNN_INLINE void next_run() {
    first += stride;
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) __builtin_prefetch(first + stride + m * kBlock);
  }
};

// Left operand read up its columns, from the last step to the first: the transposed product of the weight gradients.
template <class T>
struct LeftColumns {
  static constexpr Index run = 1, right_step = -kBlock;
  const T* last;  // columns of the last step; one step before lies 16 before
  FUSEDRNN_INLINE Accumulator<T> at(int m, Index) const { return widen(last[m]); }
  FUSEDRNN_INLINE void next_run() { last -= kBlock; }
};

// Rows at pointers of their own, read from `first_step` of the inner dimension on.
template <class T>
struct RowPointers {
  const T* const* row;
  Index first_step;
};

// Rows of a blocked buffer, from one of its runs on.
template <class T>
struct RunRows {
  const T* first;
  Index stride;
};

// The left operand of a tile of so many rows.
template <int Rows, class T>
FUSEDRNN_INLINE LeftColumns<T> left_of(const LeftColumns<T>& columns) {
  return columns;
}
template <int Rows, class T>
FUSEDRNN_INLINE LeftRuns<T, Rows> left_of(const RunRows<T>& rows) {
  return {rows.first, rows.stride};
}
template <int Rows, class T>
FUSEDRNN_INLINE LeftRows<T, Rows> left_of(const RowPointers<T>& pointers) {
  return LeftRows<T, Rows>(pointers.row, pointers.first_step);
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
