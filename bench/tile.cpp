// The micro-kernel alone: GFLOP/s of one tile of each height over inner dimensions of many lengths, with its right
// operand in the first- or second-level cache (1 block of units) and beyond (16).
//   g++ -std=c++17 -O3 -march=x86-64-v4 -ffp-contract=off -fno-math-errno -fno-trapping-math -Icsrc bench/tile.cpp -o
//   tile
//   ./tile
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/gemm/fma_tile.h"

namespace fusedrnn {
namespace {

using Tile = FmaTile<float>;
constexpr Index kRunBlocks = Tile::NR / kBlock;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Free {
  void operator()(float* data) const { std::free(data); }
};
using Numbers = std::unique_ptr<float[], Free>;

// Aligned to a cache line, as the engine's buffers are.
Numbers numbers(Index count) {
  float* data = static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64));
  std::fill_n(data, count, 0.01f);
  return Numbers(data);
}

// Ten tiles of `rows` rows beside each block of units, as in a step of 10 * rows rows.
template <class MakeLeft>
double median_gflops(int rows, Index length, Index blocks, const MakeLeft& make_left) {
  constexpr Index kTiles = 10;
  const Index all_rows = kTiles * rows, pad = 4096;
  const Numbers left = numbers(all_rows * length + pad), out = numbers(blocks * all_rows * 64);
  const Numbers right = numbers(blocks * length * 64 + 2 * pad);  // fetched ahead, and backwards
  const double operations = 2.0 * all_rows * blocks * 64 * length;
  std::vector<double> seconds;
  for (int round = 0; round < std::max(5, static_cast<int>(2e8 / operations)); ++round) {
    const double begin = now();
    for (Index block = 0; block < blocks; ++block)
      for (Index row = 0; row < all_rows; row += rows) {
        float* sums[kRunBlocks];
        for (Index i = 0; i < kRunBlocks; ++i) sums[i] = out.get() + (block * all_rows + row) * 64 + i * kBlock;
        Tile::Product product;
        product.length = length;
        product.right = right.get() + pad + block * length * 64;
        product.right_block = length * kBlock;
        product.initial = product.out = sums;
        product.initial_row = product.out_row = 64;
        make_left(left.get(), row, all_rows, length, product);
      }
    seconds.push_back(now() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  return operations / seconds[seconds.size() / 2] / 1e9;
}

template <class MakeLeft>
void print_row(const char* kind, int rows, const MakeLeft& make_left) {
  std::printf("%d rows, %-22s", rows, kind);
  for (const Index length : {64, 128, 256, 512, 1024})
    for (const Index blocks : {1, 16}) std::printf(" %5.1f", median_gflops(rows, length, blocks, make_left));
  std::puts("");
}

void print_all(int rows) {
  print_row("row by row (x, h)", rows, [&](const float* left, Index row, Index, Index length, Tile::Product& product) {
    const float* pointers[Tile::MR];
    for (int m = 0; m < rows; ++m) pointers[m] = left + (row + m) * length;
    Tile::run(rows, RowPointers<float>{pointers, 0}, product, kRunBlocks);
  });
  print_row("in runs (gate grads)", rows, [&](const float* left, Index row, Index all, Index, Tile::Product& product) {
    Tile::run(rows, RunRows<float>{left + row * kBlock, all * kBlock}, product, kRunBlocks);
  });
  print_row("transposed (weights)", rows, [&](const float* left, Index, Index, Index length, Tile::Product& product) {
    product.right += (length - 1) * kBlock;
    Tile::run(rows, LeftColumns<float>{left + (length - 1) * kBlock}, product, kRunBlocks);
  });
}

}  // namespace
}  // namespace fusedrnn

int main() {
  std::puts("GFLOP/s; inner dimension 64, 128, 256, 512, 1024, each with 1 and 16 blocks of units");
  for (int rows = 6; rows >= 1; --rows) fusedrnn::print_all(rows);
}
