// The micro-kernel of vectors and fused multiply-adds: a tile of about 6 rows x 4 vectors of a product stays in
// registers over the whole inner dimension.
#pragma once
#include "cpu/gemm/pack.h"
#include "cpu/gemm/product.h"
#include "cpu/gemm/tile_shape.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Steps of the inner dimension by which the right operand is prefetched from the second-level cache.
constexpr Index kPrefetchSteps = 16;
// Tiles of fewer rows are bound by the loads themselves, and a prefetch is one more.
constexpr int kPrefetchRows = 4;

template <class Real, int Rows, int Blocks, class Left>
FUSEDRNN_NOINLINE void tile(Left left, const Product<Real, Real>& p, Index first_block, Index column) {
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
  // do-while: with a leading test the compiler copies all accumulators.
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
inline void tile_blocks(const Left& left, const Product<Real, Real>& p, Index blocks) {
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

template <class Real>
struct FmaTile : BlockPacking<Real> {
  using Left = Real;
  using Right = Real;
  using Sum = Real;
  using Product = fusedrnn::Product<Right, Sum>;
  using OuterLeft = LeftColumns<Left>;

  static constexpr bool pairs = false;
  static constexpr int MR = 6;
  static constexpr Index NR = 4 * kBlock;
  struct Session {
    Session() {}  // so that one which nothing else uses is no warning
  };
  struct Ready {};
  static Ready make_ready(const Right*, Index, Index, Index, Index, Sum*) { return {}; }
  static void use(Ready, Index, Index, Product&) {}

  // So that the right operand of a run's columns, 256 KiB of floats, stays in the second-level cache.
  static constexpr Index KC = 1024;

  template <class Left>
  static void run(int rows, const Left& left, const Product& p, Index blocks) {
    switch (rows) {
      case 1:
        return tile_blocks<Real, 1>(left_of<1>(left), p, blocks);
      case 2:
        return tile_blocks<Real, 2>(left_of<2>(left), p, blocks);
      case 3:
        return tile_blocks<Real, 3>(left_of<3>(left), p, blocks);
      case 4:
        return tile_blocks<Real, 4>(left_of<4>(left), p, blocks);
      case 5:
        return tile_blocks<Real, 5>(left_of<5>(left), p, blocks);
      default:
        return tile_blocks<Real, 6>(left_of<6>(left), p, blocks);
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
