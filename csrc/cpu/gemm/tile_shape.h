// How many vectors of sums the registers hold, and how they lie over blocks of 16 columns.
#pragma once
#include "common/arguments.h"
#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// 6 x 4 accumulators, 4 right-hand vectors and a broadcast fill 32 registers; 6 x 2, 2 and 1 fill 16.
constexpr int kTileVectors = kRegisters == 32 ? 4 : 2;

// How a tile's vectors lie over blocks of 16 columns.
template <class Real>
struct TileShape {
  static constexpr int lanes = Vec<Real>::lanes;
  static constexpr int vectors_of_block = kBlock / lanes;
  static constexpr int parts = vectors_of_block < kTileVectors ? vectors_of_block : kTileVectors;  // of one block
  static constexpr int blocks = kTileVectors / parts;
  static constexpr int passes = vectors_of_block / parts;  // tiles that one block needs
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
