// Gate gradients times the caller's own weights. The rows of a weight matrix already lie along the gate gradients:
// where few rows use a weight, packing it costs more than reading it at a stride.
#pragma once
#include "cpu/gemm/pack.h"
#include "cpu/gemm/product.h"
#include "cpu/runtime/worker.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Rows of a blocked buffer, as RunRows, for a right operand whose steps are the rows of a matrix.
template <class Operand>
struct RunRowsOnMatrix {
  RunRows<Operand> rows;
  Index columns;
};
template <class Operand, int Rows>
struct LeftRunsOnMatrix : LeftRuns<Operand, Rows> {
  Index right_step;
  LeftRunsOnMatrix(const RunRows<Operand>& rows, Index columns)
      : LeftRuns<Operand, Rows>{rows.first, rows.stride}, right_step(columns) {}
};
template <int Rows, class Operand>
FUSEDRNN_INLINE LeftRunsOnMatrix<Operand, Rows> left_of(const RunRowsOnMatrix<Operand>& left) {
  return {left.rows, left.columns};
}

// A weight matrix whose whole blocks are read where they lie. What fills no block is packed, at the place it has where
// all of the matrix is packed: the last columns, and of the others the last units in each slot. Sums run as they do
// there, zeros past the last unit included.
template <class T, class Tile>
struct DirectWeight {
  using Operand = typename Tile::Right;
  using Sum = typename Tile::Sum;
  static constexpr Index kRunBlocks = Tile::NR / kBlock;

  const T* weight;  // (gates * H, columns)
  Index columns, hidden;
  const Window& window;
  Operand* packed;

  // What must be packed of the column blocks `mine`.
  void pack(Range mine) const {
    const Index stride = inner() * kBlock, whole = smaller(mine.last, columns / kBlock);
    for (Index i = mine.first; hidden % kBlock != 0 && i < whole; i += kRunBlocks)
      Tile::pack_backward(weight, columns, i, smaller(kRunBlocks, whole - i), hidden, window, packed + i * stride,
                          stride, whole_units());
    if (whole < mine.last)
      Tile::pack_backward(weight, columns, whole, 1, hidden, window, packed + whole * stride, stride);
  }

  // to(m, :) += gradient(row + m, :) . weight, for `rows` <= 6 rows and `count` <= 4 column blocks.
  void add_product(const Blocked<Operand>& gradient, Index row, int rows, Index block, Index count, Sum* to,
                   Index to_row) const {
    const Index blocks = blocks_of(hidden), whole = smaller(count, columns / kBlock - block);
    Sum* out[kRunBlocks];
    for (Index i = 0; i < count; ++i) out[i] = to + i * kBlock;
    typename Tile::Product product;
    product.initial = product.out = out;
    product.initial_row = product.out_row = to_row;
    const auto left = [&](Index run) { return RunRows<Operand>{gradient.at(run, row), gradient.block_stride()}; };
    for (int slot = 0; slot < window.count; ++slot) {
      const Index run = (window.first + slot) * blocks;
      product.length = whole_units();
      product.right = weight + window.gate[slot] * hidden * columns + block * kBlock;
      product.right_block = kBlock;
      if (product.length > 0) Tile::run(rows, RunRowsOnMatrix<Operand>{left(run), columns}, product, whole);
      if (product.length == hidden) continue;
      product.length = kBlock;
      product.right = packed + (block * inner() + ((slot + 1) * blocks - 1) * kBlock) * kBlock;
      product.right_block = inner() * kBlock;
      Tile::run(rows, left(run + blocks - 1), product, whole);
    }
    if (whole == count) return;
    product.length = inner();
    product.right = packed + (block + whole) * inner() * kBlock;
    product.initial = product.out = out + whole;
    Tile::run(rows, left(window.first * blocks), product, 1);
  }

 private:
  Index whole_units() const { return hidden / kBlock * kBlock; }
  // Inner dimension of the packed weights.
  Index inner() const { return blocks_of(hidden) * window.count * kBlock; }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
