// The large products that gradients end in: gradients of outputs times weights, and their outer product with inputs.
#pragma once
#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/worker.h"

namespace fusedrnn {
namespace {

// Rows [rows.first, rows.last) of gradient . weight, where a row of the gradient is `k_blocks` runs of `k_length` from
// `offset` in each block. `rows_from(block)` gives a walk over the destination's rows at that block of columns.
template <class Real, class RowsFrom>
void multiply_gradient(const Blocked<Real>& gradient, Index offset, Index k_length, Index k_blocks, const Real* packed,
                       Index columns, Range rows, const RowsFrom& rows_from) {
  alignas(64) Real sums[kTileRows * kColumns * kBlock];
  const Real* initial[kColumns];
  Real* out[kColumns];
  for (Index i = 0; i < kColumns; ++i) {
    initial[i] = zeros(Real(0));
    out[i] = sums + i * kBlock;
  }
  Product<Real> product;
  product.k_blocks = k_blocks;
  product.k_length = k_length;
  product.left_block = gradient.block_stride();
  product.right_block = k_blocks * k_length * kBlock;
  product.initial = initial;
  product.initial_row = 0;
  product.out = out;
  product.out_row = kColumns * kBlock;
  for (Index block = 0; block < blocks_of(columns); block += kColumns) {
    product.right = packed + block * product.right_block;
    auto next_row = rows_from(block);
    for (Index r = rows.first; r < rows.last;) {
      const int tile = tile_rows(rows.last - r);
      const Real* left[kTileRows];
      for (int i = 0; i < tile; ++i) left[i] = gradient.at(0, r + i) + offset;
      gemm(tile, left, product, smaller(kColumns, blocks_of(columns) - block));
      for (int i = 0; i < tile; ++i)
        copy_unpadded(sums + i * kColumns * kBlock, smaller(kColumns * kBlock, columns - block * kBlock), next_row());
      r += tile;
    }
  }
}

// One tile of an outer product: to(m, :) += sum over rows, last to first, of left(row, m) panel(row, :).
template <class Real>
void accumulate_tile(const Real* last_left, Index left_width, int tile, const Blocked<Real>& panel, Index rows,
                     Index first_block, Index count, Real* to, Index to_row) {
  Real* out[kColumns];
  for (Index i = 0; i < count; ++i) out[i] = to + i * kBlock;
  Product<Real> product;
  product.k_length = rows;
  product.right = panel.at(first_block, rows - 1);
  product.right_block = panel.block_stride();
  product.right_step = -kBlock;
  product.initial = out;
  product.out = out;
  product.initial_row = product.out_row = to_row;
  gemm_transposed(tile, LeftColumns<Real>{last_left, -left_width}, product, count);
}

// Gradient rows (`units` of one block, `columns` long, contiguous) += outer product with `rows` rows of the panel, for
// the columns of up to four blocks from `first_block`. A partial last block of columns goes through a padded copy.
template <class Real>
void accumulate_outer(const Blocked<Real>& gradient, Index block, Index offset, int units, const Blocked<Real>& panel,
                      Index rows, Index first_block, Index columns, Real* to) {
  const Index full = smaller(kColumns, columns / kBlock - first_block), edge = first_block + full;
  const Index edge_columns = full < kColumns ? columns - edge * kBlock : 0;
  for (int u = 0; u < units;) {
    const int tile = tile_rows(units - u);
    const Real* left = gradient.at(block, rows - 1) + offset + u;
    Real* row = to + u * columns;
    if (full > 0)
      accumulate_tile(left, gradient.width, tile, panel, rows, first_block, full, row + first_block * kBlock, columns);
    if (edge_columns > 0) {
      alignas(64) Real sums[kTileRows * kBlock];
      for (int m = 0; m < tile; ++m) copy_padded(row + m * columns + edge * kBlock, edge_columns, sums + m * kBlock);
      accumulate_tile(left, gradient.width, tile, panel, rows, edge, 1, sums, kBlock);
      for (int m = 0; m < tile; ++m) copy_unpadded(sums + m * kBlock, edge_columns, row + m * columns + edge * kBlock);
    }
    u += tile;
  }
}

// to(u) += sum over rows, last to first, of gradient(row, u).
template <class Real>
void accumulate_rows(const Blocked<Real>& gradient, Index block, Index offset, int units, Index rows, Real* to) {
  using V = Vec<Real>;
  for (int u = 0; u < units; u += V::lanes) {
    const int count = static_cast<int>(smaller(V::lanes, units - u));
    V sum = V::load_partial(to + u, count);
    for (Index r = rows; r-- > 0;) sum += V::load(gradient.at(block, r) + offset + u);
    sum.store_partial(to + u, count);
  }
}

}  // namespace
}  // namespace fusedrnn
