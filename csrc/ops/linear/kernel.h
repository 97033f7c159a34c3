// The linear map y_n = x_n W^T + b: dx_n = dy_n W, dW = sum over n of dy_n^T x_n, db = sum over n of dy_n. Outputs are
// in blocks of 16, and a chunk of rows exists in that form at a time. Rows are independent of the chunk they fall in.
// The gradients of weights are sums of chunks, which count from the last row: one chain of sums over all rows would
// lose digits with their number. A single chunk may take seconds: every loop looks whether to stop, and a thread that
// does goes on to the next barrier, where the others may be waiting.
#pragma once
#include "cpu/gemm/fma_tile.h"
#include "cpu/gemm/gradients.h"
#include "ops/linear/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// How many multiply-adds take as long as one element packed, which comes from memory.
constexpr Index kPackedElement = 32;

// The products and their gradients, for every readout that has them.
template <class Real, class Tile>
class LinearProducts {
  static constexpr Index kRunBlocks = Tile::NR / kBlock;

 public:
  LinearProducts(const LinearArguments<Real>& arguments, Worker& worker)
      : w(worker), blocks(blocks_of(arguments.out_features)), a(arguments) {}

 protected:
  Worker& w;
  const Index blocks;  // of outputs

  // `absent`: the bias of the outputs that fill up the last block.
  void pack(Real absent) {
    const Range mine = part_of(blocks, w.thread, w.threads());
    for (Index block = mine.first; block < mine.last; ++block) {
      Tile::pack_forward(a.weight + block * kBlock * a.in_features, a.in_features, outputs_in(block),
                         a.packed + block * a.in_features * kBlock);
      Real* bias = a.packed_bias + block * kBlock;
      for (int v = 0; v < kBlock; ++v)
        bias[v] = v >= outputs_in(block) ? absent : a.bias ? a.bias[block * kBlock + v] : Real(0);
      if (w.skip(a.in_features * kPackedElement)) return;
    }
  }
  void pack_transposed() {
    const Range mine = part_of(blocks_of(a.in_features), w.thread, w.threads());
    const Index stride = blocks * kBlock * kBlock;
    for (Index j = mine.first; j < mine.last; j += kRunBlocks) {
      const Index count = smaller(kRunBlocks, mine.last - j);
      if (w.skip(count * blocks * kBlock * kPackedElement)) return;
      Tile::pack_backward(a.weight, a.in_features, j, count, a.out_features, Window{0, 1, {0}},
                          a.packed_backward + j * stride, stride);
    }
  }

  // Products of the output blocks [first, last) into a buffer that begins at block `origin`.
  void multiply(Range rows, Index first, Index last, Index origin, const Blocked<Real>& products) {
    for (Index v = first; v < last; v += kRunBlocks) {
      const Index count = smaller(kRunBlocks, last - v);
      const Real* bias[kRunBlocks];
      Real* out[kRunBlocks];
      for (Index i = 0; i < count; ++i) {
        bias[i] = a.packed_bias + (v + i) * kBlock;
        out[i] = products.at(v + i - origin, 0);
      }
      typename Tile::Product product;
      product.length = a.in_features;
      product.right = a.packed + v * a.in_features * kBlock;
      product.right_block = a.in_features * kBlock;
      product.initial = bias;
      product.initial_row = 0;
      product.out = out;
      product.out_row = kBlock;
      for (Index n = rows.first; n < rows.last;) {
        const int tile = tile_rows<Tile>(rows.last - n);
        const Real* left[Tile::MR];
        for (int i = 0; i < tile; ++i) left[i] = a.x + (n + i) * a.in_features;
        Tile::run(tile, RowPointers<Real>{left, 0}, product, count);
        n += tile;
        for (Index i = 0; i < count; ++i) out[i] += tile * kBlock;
      }
      if (w.skip((rows.last - rows.first) * a.in_features * count)) return;
    }
  }

  void stage_x(Range rows) {
    const Range mine = part_of(rows.last - rows.first, w.thread, w.threads());
    for (Index r = mine.first; r < mine.last; ++r)
      for (Index i = 0; i < blocks_of(a.in_features); ++i)
        copy_padded(a.x + (rows.first + r) * a.in_features + i * kBlock, a.in_features - i * kBlock,
                    a.x_panel.at(i, r));
  }

  void input_gradient(Range rows, const Blocked<Real>& products) {
    const Range mine = part_of(rows.last - rows.first, w.thread, w.threads());
    GradientProducts<Tile>::multiply_gradient(
        w, products, 0, blocks, a.packed_backward, a.in_features, mine, [&](Index block) {
          Real* row = a.dx + (rows.first + mine.first) * a.in_features + block * kBlock;
          return [row, this]() mutable {
            Real* current = row;
            row += a.in_features;
            return current;
          };
        });
  }

  void weight_gradient(Range rows, Range mine, const Blocked<Real>& products, bool adding) {
    const Index count = rows.last - rows.first;
    alignas(64) Real sums[kBlock * kRunBlocks * kBlock];  // of the chunk
    for (Index i = 0; i < blocks_of(a.in_features); i += kRunBlocks) {
      const Blocked<Real> panel = {a.x_panel.at(i, 0), a.chunk_rows, kBlock};
      const Index columns = smaller(kRunBlocks * kBlock, a.in_features - i * kBlock);
      for (Index v = mine.first; v < mine.last; ++v) {
        if (w.skip(count * kBlock * kRunBlocks)) return;
        GradientProducts<Tile>::accumulate_outer(products, v, outputs_in(v), {panel, 0}, {0, count}, columns, false,
                                                 sums);
        Real* row = a.dweight + v * kBlock * a.in_features + i * kBlock;
        for (int u = 0; u < outputs_in(v); ++u, row += a.in_features) write(sums + u * columns, columns, adding, row);
      }
    }
    if (a.dbias)
      for (Index v = mine.first; v < mine.last; ++v) {
        GradientProducts<Tile>::accumulate_rows(products, v, outputs_in(v), {0, count}, false, sums,
                                                static_cast<Real*>(nullptr));
        write(sums, outputs_in(v), adding, a.dbias + v * kBlock);
      }
  }

  // to = (adding: to) + sums
  FUSEDRNN_INLINE static void write(const Real* sums, Index count, bool adding, Real* to) {
    for (Index i = 0; i < count; ++i) to[i] = adding ? to[i] + sums[i] : sums[i];
  }

  int outputs_in(Index block) const { return static_cast<int>(smaller(kBlock, a.out_features - block * kBlock)); }

 private:
  const LinearArguments<Real>& a;
};

template <class Real, class Tile = FmaTile<Real>>
class Linear : LinearProducts<Real, Tile> {
  using Base = LinearProducts<Real, Tile>;
  using Base::blocks, Base::w;

 public:
  Linear(const LinearArguments<Real>& arguments, Worker& worker) : Base(arguments, worker), a(arguments) {}

  void forward() {
    Base::pack(Real(0));
    w.meet();
    const Range mine = part_of(a.rows, w.thread, w.threads());
    const Blocked<Real> products = {a.products + w.thread * a.chunk_blocks * a.chunk_rows * kBlock, a.chunk_rows,
                                    kBlock};
    for (Index n = mine.first; n < mine.last; n += a.chunk_rows) {
      const Range rows = {n, smaller(n + a.chunk_rows, mine.last)};
      for (Index v = 0; v < blocks; v += a.chunk_blocks) {
        if (w.skip(0)) return;
        const Index end = smaller(v + a.chunk_blocks, blocks);
        Base::multiply(rows, v, end, v, products);
        for (Index r = n; r < rows.last; ++r)
          for (Index block = v; block < end; ++block)
            copy_unpadded(products.at(block - v, r - n), Base::outputs_in(block),
                          a.y + r * a.out_features + block * kBlock);
      }
    }
  }

  void backward() {
    Base::pack_transposed();
    w.meet();
    const Range mine = part_of(blocks, w.thread, w.threads());
    const Blocked<Real> gradient = {a.products, a.chunk_rows, kBlock};
    Index last = a.rows, chunk = 0;
    for (; last > 0; last = larger(0, last - a.chunk_rows), ++chunk) {
      if (!w.go_on(chunk)) return;
      const Range rows = {larger(0, last - a.chunk_rows), last};
      Base::stage_x(rows);
      for (Index v = mine.first; v < mine.last && !w.skip((rows.last - rows.first) * kPackedElement); ++v)
        for (Index r = rows.first; r < rows.last; ++r)
          copy_padded(a.dy + r * a.out_features + v * kBlock, Base::outputs_in(v), gradient.at(v, r - rows.first));
      w.meet();
      Base::input_gradient(rows, gradient);
      Base::weight_gradient(rows, mine, gradient, chunk > 0);
      w.meet();
    }
  }

 private:
  const LinearArguments<Real>& a;
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
