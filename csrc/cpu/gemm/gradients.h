// The large products that gradients end in: gradients of outputs times weights, and their outer product with inputs.
#pragma once
#include "cpu/gemm/pack.h"
#include "cpu/gemm/product.h"
#include "cpu/gemm/tile_shape.h"
#include "cpu/runtime/worker.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Rows of a product that pass one part of the inner dimension: their sums (24 KiB of floats) stay in the first-level
// cache or near it.
constexpr Index kSumRows = 96;

// Rows up to which a weight's gradient takes too few terms to be worth a tile of sums: a call of the tile then costs as
// much as its multiply-adds, and rows of the gradient are best written from end to end.
constexpr Index kFewRows = 32;
constexpr int kFewUnits = 4;

template <class Tile>
struct GradientProducts {
  using Left = typename Tile::Left;
  using Right = typename Tile::Right;
  using Sum = typename Tile::Sum;
  using V = Vec<Sum>;
  static constexpr Index kRunBlocks = Tile::NR / kBlock;
  // Rows of an outer product that its operands pass at a time, and elements of the left one from column to column.
  static constexpr Index kOuterRows = Tile::pairs ? kPairGroup : 1;
  static constexpr Index kOuterColumn = Tile::pairs && sizeof(Left) == 2 ? 2 : 1;

  // sums = (k > 0: sums) + `rows` rows of the gradient . weight over the part of the inner dimension from k on.
  FUSEDRNN_NOINLINE static void add_gradient_part(const Blocked<Left>& gradient, Index first_run, Index first_row,
                                                  Index rows, const Right* packed, Index inner, Index k, Index blocks,
                                                  Sum* sums, Sum* scratch) {
    const Sum* initial[kRunBlocks];
    Sum* out[kRunBlocks];
    for (Index i = 0; i < kRunBlocks; ++i) {
      out[i] = sums + i * kBlock;
      initial[i] = k > 0 ? out[i] : zeros(Sum(0));
    }
    typename Tile::Product product;
    product.length = smaller(Tile::KC, inner - k);
    product.right = packed + k * kBlock;
    product.right_block = packed_inner<Right>(inner) * kBlock;
    product.initial = initial;
    product.initial_row = k > 0 ? kRunBlocks * kBlock : 0;
    product.out = out;
    product.out_row = kRunBlocks * kBlock;
    Tile::use(Tile::make_ready(product.right, product.right_block, product.length, blocks, rows, scratch), 0, 0,
              product);
    for (Index done = 0; done < rows;) {
      const int tile = tile_rows<Tile>(rows - done);
      const RunRows<Left> left = {gradient.at(first_run + k / kBlock, first_row + done), gradient.block_stride()};
      Tile::run(tile, left, product, blocks);
      done += tile;
      for (Index i = 0; i < kRunBlocks; ++i) {
        out[i] += tile * kRunBlocks * kBlock;
        if (k > 0) initial[i] = out[i];
      }
    }
  }

  // Rows [rows.first, rows.last) of gradient . weight, the gradient's inner dimension being `runs` runs from first_run
  // on. `rows_from(block)` gives a walk over the destination's rows at that block of columns.
  template <class RowsFrom>
  static void multiply_gradient(Worker& w, const Blocked<Left>& gradient, Index first_run, Index runs,
                                const Right* packed, Index columns, Range rows, const RowsFrom& rows_from,
                                Sum* scratch = nullptr) {
    alignas(64) Sum sums[kSumRows * kRunBlocks * kBlock];
    const Index inner = runs * kBlock;
    for (Index block = 0; block < blocks_of(columns); block += kRunBlocks) {
      const Index blocks = smaller(kRunBlocks, blocks_of(columns) - block);
      auto next_row = rows_from(block);
      for (Index r = rows.first; r < rows.last; r += kSumRows) {
        const Index count = smaller(kSumRows, rows.last - r);
        if (w.skip(count * blocks * inner)) return;
        for (Index k = 0; k < inner; k += Tile::KC)
          add_gradient_part(gradient, first_run, r, count, packed + block * packed_inner<Right>(inner) * kBlock, inner,
                            k, blocks, sums, scratch);
        for (Index i = 0; i < count; ++i)
          copy_unpadded(sums + i * kRunBlocks * kBlock, smaller(kRunBlocks * kBlock, columns - block * kBlock),
                        next_row());
      }
    }
  }

  // Rows of up to four blocks of columns, the right operand of outer products.
  struct OuterPanel {
    Blocked<Right> rows;
    Index first_block;
    typename Tile::Ready ready = {};
  };
  static OuterPanel outer_panel(const Blocked<Right>& panel, Range rows, Index first_block, Index columns,
                                Sum* scratch) {
    return {panel, first_block,
            Tile::make_ready(panel.at(first_block, rows.first), panel.block_stride(), rows.last - rows.first,
                             smaller(kRunBlocks, blocks_of(columns) - first_block), Tile::NR, scratch)};
  }

  // One tile of an outer product: to(m, :) = (adding: to(m, :)) + sum over rows, last to first, of left(row, m) *
  // panel(row, :).
  static void accumulate_tile(const Left* last_left, int tile, const OuterPanel& panel, Range rows, Index first_block,
                              Index count, bool adding, Sum* to, Index to_row) {
    Sum* out[kRunBlocks];
    const Sum* initial[kRunBlocks];
    for (Index i = 0; i < count; ++i) {
      out[i] = to + i * kBlock;
      initial[i] = adding ? out[i] : zeros(Sum(0));
    }
    typename Tile::Product product;
    product.length = rows.last - rows.first;
    product.right = panel.rows.at(first_block, rows.last - kOuterRows);
    product.right_block = panel.rows.block_stride();
    Tile::use(panel.ready, first_block - panel.first_block, rows.last - kOuterRows - rows.first, product);
    product.initial = initial;
    product.initial_row = adding ? to_row : 0;
    product.out = out;
    product.out_row = to_row;
    Tile::run(tile, typename Tile::OuterLeft{last_left}, product, count);
  }

  // Prefetches the next tile's sums, for which it would wait: they lie so far apart that the hardware sees no pattern.
  static void fetch_rows(const Sum* row, int rows, Index blocks, Index columns) {
    for (int m = 0; m < smaller(Tile::MR, rows); ++m)
      for (Index i = 0; i < blocks; ++i) __builtin_prefetch(row + m * columns + i * kBlock, 1);
  }

  // Gradient rows (`units` of one run, `columns` long, contiguous) = (adding: themselves) + outer product with the
  // rows `rows` of the panel, for the columns of up to four blocks. A partial last block of columns goes through a
  // padded copy.
  static void accumulate_outer(const Blocked<Left>& gradient, Index run, int units, const OuterPanel& panel, Range rows,
                               Index columns, bool adding, Sum* to) {
    const Index first_block = panel.first_block;
    const Index full = smaller(kRunBlocks, columns / kBlock - first_block), edge = first_block + full;
    const Index edge_columns = full < kRunBlocks ? columns - edge * kBlock : 0;
    for (int u = 0; u < units;) {
      const int tile = tile_rows<Tile>(units - u);
      const Left* left = gradient.at(run, rows.last - kOuterRows) + u * kOuterColumn;
      Sum* row = to + u * columns;
      if (full > 0) {
        fetch_rows(row + tile * columns + first_block * kBlock, units - u - tile, full, columns);
        accumulate_tile(left, tile, panel, rows, first_block, full, adding, row + first_block * kBlock, columns);
      }
      if (edge_columns > 0) {
        alignas(64) Sum sums[Tile::MR * kBlock];
        for (int m = 0; adding && m < tile; ++m)
          copy_padded(row + m * columns + edge * kBlock, edge_columns, sums + m * kBlock);
        accumulate_tile(left, tile, panel, rows, edge, 1, adding, sums, kBlock);
        for (int m = 0; m < tile; ++m)
          copy_unpadded(sums + m * kBlock, edge_columns, row + m * columns + edge * kBlock);
      }
      u += tile;
    }
  }

  // The columns from `column` on, as many as a tile takes of a block, in kFewUnits rows of the gradient, of which
  // `units` are there.
  template <bool kWhole>
  FUSEDRNN_INLINE static void accumulate_part(const Left* last_left, int units, const Blocked<Right>& panel, Index rows,
                                              Index column, Index columns, bool adding, Sum* to) {
    constexpr int parts = TileShape<Sum>::parts;
    const auto lanes = [&](int v) {
      return static_cast<int>(larger(0, smaller(V::lanes, columns - column - v * V::lanes)));
    };
    V sum[kFewUnits][parts];
#pragma GCC unroll 4
    for (int m = 0; m < kFewUnits; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < parts; ++v) {
        const Sum* from = to + m * columns + column + v * V::lanes;
        if (!adding || m >= units)
          sum[m][v] = V(Sum(0));
        else
          sum[m][v] = kWhole ? load(from) : load_partial(from, lanes(v));
      }
    const Right* right = panel.at(column / kBlock, rows - 1) + column % kBlock;
    for (Index r = rows; r > 0; --r, last_left -= kBlock, right -= kBlock) {
      V b[parts];
#pragma GCC unroll 2
      for (int v = 0; v < parts; ++v) b[v] = load(right + v * V::lanes);
#pragma GCC unroll 4
      for (int m = 0; m < kFewUnits; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < parts; ++v) sum[m][v] = fma(V(widen(last_left[m])), b[v], sum[m][v]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < kFewUnits; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < parts; ++v) {
        if (m >= units) return;
        Sum* out = to + m * columns + column + v * V::lanes;
        if constexpr (kWhole)
          store(sum[m][v], out);
        else
          store_partial(sum[m][v], out, lanes(v));
      }
  }

  // As accumulate_outer, for all columns and at most kFewRows rows.
  FUSEDRNN_NOINLINE static void accumulate_few(const Blocked<Left>& gradient, Index run, int units,
                                               const Blocked<Right>& panel, Index rows, Index columns, bool adding,
                                               Sum* to) {
    constexpr Index width = TileShape<Sum>::parts * V::lanes;
    for (int u = 0; u < units; u += kFewUnits, to += kFewUnits * columns) {
      const Left* left = gradient.at(run, rows - 1) + u;
      Index column = 0;
      for (; column + width <= columns; column += width)
        accumulate_part<true>(left, units - u, panel, rows, column, columns, adding, to);
      if (column < columns) accumulate_part<false>(left, units - u, panel, rows, column, columns, adding, to);
    }
  }

  // first(u) and second(u) = (adding: themselves) + sum over rows, last to first, of gradient(row, u); either may be
  // null.
  FUSEDRNN_NOINLINE static void accumulate_rows(const Blocked<Left>& gradient, Index run, int units, Range rows,
                                                bool adding, Sum* first, Sum* second) {
    for (int u = 0; u < units; u += V::lanes) {
      const int count = static_cast<int>(smaller(V::lanes, units - u));
      V a = adding && first ? load_partial(first + u, count) : V(Sum(0));
      V b = adding && second ? load_partial(second + u, count) : V(Sum(0));
      for (Index r = rows.last; r-- > rows.first;) {
        const V term = load(gradient.at(run, r) + u);
        a += term;
        b += term;
      }
      if (first) store_partial(a, first + u, count);
      if (second) store_partial(b, second + u, count);
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
