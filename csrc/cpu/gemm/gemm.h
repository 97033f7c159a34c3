// Products in tiles of rows.
#pragma once
#include "cpu/gemm/tile.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Column blocks that one call covers.
constexpr Index kColumns = 4;

// Steps of the inner dimension that all rows pass before the next ones: the right operand of a call's blocks (256 KiB
// of floats) then stays in the second-level cache meanwhile. A multiple of 16.
constexpr Index kInnerPart = 1024;

alignas(64) const float kZerosFloat[kBlock] = {};
alignas(64) const double kZerosDouble[kBlock] = {};
inline const float* zeros(float) { return kZerosFloat; }
inline const double* zeros(double) { return kZerosDouble; }

// Rows of the next tile when `rows` are left: even tiles, so that no tile is a thin remainder.
inline int tile_rows(Index rows) {
  const Index tiles = (rows + kTileRows - 1) / kTileRows;
  return static_cast<int>((rows + tiles - 1) / tiles);
}

// Rows at pointers of their own, read from `first_step` of the inner dimension on.
template <class Real>
struct RowPointers {
  const Real* const* row;
  Index first_step;
};

// Rows of a blocked buffer, from one of its runs on.
template <class Real>
struct RunRows {
  const Real* first;
  Index stride;
};

template <int Rows, class Real>
FUSEDRNN_INLINE LeftColumns<Real> left_of(const LeftColumns<Real>& columns) {
  return columns;
}
template <int Rows, class Real>
FUSEDRNN_INLINE LeftRuns<Real, Rows> left_of(const RunRows<Real>& rows) {
  return {rows.first, rows.stride};
}
template <int Rows, class Real>
FUSEDRNN_INLINE LeftRows<Real, Rows> left_of(const RowPointers<Real>& pointers) {
  return LeftRows<Real, Rows>(pointers.row, pointers.first_step);
}

// Picks the tile of `rows` <= 6 rows.
template <class Real, class Left>
inline void gemm(int rows, const Left& left, const Product<Real>& p, Index blocks) {
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

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
