// Products in tiles of rows: left . right, and left transposed . right.
#pragma once
#include "cpu/tile.h"

namespace fusedrnn {
namespace {

// Column blocks that one call covers.
constexpr Index kColumns = 4;

alignas(64) const float kZerosFloat[kBlock] = {};
alignas(64) const double kZerosDouble[kBlock] = {};
inline const float* zeros(float) { return kZerosFloat; }
inline const double* zeros(double) { return kZerosDouble; }

// Rows of the next tile when `rows` are left: even tiles, so that no tile is a thin remainder.
inline int tile_rows(Index rows) {
  const Index tiles = (rows + kTileRows - 1) / kTileRows;
  return static_cast<int>((rows + tiles - 1) / tiles);
}

// `rows` <= 6 rows, each at its own pointer.
template <class Real>
inline void gemm(int rows, const Real* const* left, const Product<Real>& p, Index blocks) {
  switch (rows) {
    case 1:
      return tile_blocks<Real, 1>(LeftRows<Real, 1>(left, p.left_block), p, blocks);
    case 2:
      return tile_blocks<Real, 2>(LeftRows<Real, 2>(left, p.left_block), p, blocks);
    case 3:
      return tile_blocks<Real, 3>(LeftRows<Real, 3>(left, p.left_block), p, blocks);
    case 4:
      return tile_blocks<Real, 4>(LeftRows<Real, 4>(left, p.left_block), p, blocks);
    case 5:
      return tile_blocks<Real, 5>(LeftRows<Real, 5>(left, p.left_block), p, blocks);
    default:
      return tile_blocks<Real, 6>(LeftRows<Real, 6>(left, p.left_block), p, blocks);
  }
}

// `rows` <= 6 adjacent columns of the left operand become rows of the result.
template <class Real>
inline void gemm_transposed(int rows, const LeftColumns<Real>& left, const Product<Real>& p, Index blocks) {
  switch (rows) {
    case 1:
      return tile_blocks<Real, 1>(left, p, blocks);
    case 2:
      return tile_blocks<Real, 2>(left, p, blocks);
    case 3:
      return tile_blocks<Real, 3>(left, p, blocks);
    case 4:
      return tile_blocks<Real, 4>(left, p, blocks);
    case 5:
      return tile_blocks<Real, 5>(left, p, blocks);
    default:
      return tile_blocks<Real, 6>(left, p, blocks);
  }
}

}  // namespace
}  // namespace fusedrnn
