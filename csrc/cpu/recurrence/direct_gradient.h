// Gate gradients times the caller's own weights. The rows of a weight matrix already lie along the gate gradients:
// where few rows use a weight, packing it costs more than reading it at a stride.
#pragma once
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/pack.h"
#include "cpu/runtime/worker.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Rows of a blocked buffer, as RunRows, for a right operand whose steps are the rows of a matrix.
template <class Real>
struct RunRowsOnMatrix {
  RunRows<Real> rows;
  Index columns;
};
template <class Real, int Rows>
struct LeftRunsOnMatrix : LeftRuns<Real, Rows> {
  Index right_step;
  LeftRunsOnMatrix(const RunRows<Real>& rows, Index columns)
      : LeftRuns<Real, Rows>{rows.first, rows.stride}, right_step(columns) {}
};
template <int Rows, class Real>
FUSEDRNN_INLINE LeftRunsOnMatrix<Real, Rows> left_of(const RunRowsOnMatrix<Real>& left) {
  return {left.rows, left.columns};
}

// A weight matrix whose whole blocks are read where they lie. What fills no block is packed, at the place it has where
// all of the matrix is packed: the last columns, and of the others the last units in each slot. Sums run as they do
// there, zeros past the last unit included.
template <class Real>
struct DirectWeight {
  const Real* weight;  // (gates * H, columns)
  Index columns, hidden;
  const Window& window;
  Real* packed;

  // What must be packed of the column blocks `mine`.
  void pack(Range mine) const {
    const Index stride = inner() * kBlock, whole = smaller(mine.last, columns / kBlock);
    for (Index i = mine.first; hidden % kBlock != 0 && i < whole; i += kColumns)
      pack_backward(weight, columns, i, smaller(kColumns, whole - i), hidden, window, packed + i * stride, stride,
                    whole_units());
    if (whole < mine.last) pack_backward(weight, columns, whole, 1, hidden, window, packed + whole * stride, stride);
  }

  // to(m, :) += gradient(row + m, :) . weight, for `rows` <= 6 rows and `count` <= 4 column blocks.
  void add_product(const Blocked<Real>& gradient, Index row, int rows, Index block, Index count, Real* to,
                   Index to_row) const {
    const Index blocks = blocks_of(hidden), whole = smaller(count, columns / kBlock - block);
    Real* out[kColumns];
    for (Index i = 0; i < count; ++i) out[i] = to + i * kBlock;
    Product<Real> product;
    product.initial = product.out = out;
    product.initial_row = product.out_row = to_row;
    const auto left = [&](Index run) { return RunRows<Real>{gradient.at(run, row), gradient.block_stride()}; };
    for (int slot = 0; slot < window.count; ++slot) {
      const Index run = (window.first + slot) * blocks;
      product.length = whole_units();
      product.right = weight + window.gate[slot] * hidden * columns + block * kBlock;
      product.right_block = kBlock;
      if (product.length > 0) gemm(rows, RunRowsOnMatrix<Real>{left(run), columns}, product, whole);
      if (product.length == hidden) continue;
      product.length = kBlock;
      product.right = packed + (block * inner() + ((slot + 1) * blocks - 1) * kBlock) * kBlock;
      product.right_block = inner() * kBlock;
      gemm(rows, left(run + blocks - 1), product, whole);
    }
    if (whole == count) return;
    product.length = inner();
    product.right = packed + (block + whole) * inner() * kBlock;
    product.initial = product.out = out + whole;
    gemm(rows, left(window.first * blocks), product, 1);
  }

 private:
  Index whole_units() const { return hidden / kBlock * kBlock; }
  // Inner dimension of the packed weights.
  Index inner() const { return blocks_of(hidden) * window.count * kBlock; }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
