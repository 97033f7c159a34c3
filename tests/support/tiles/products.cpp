// Products of bfloat16 of many shapes, by whatever micro-kernel this is compiled for; their sums go to the standard
// output. What lies beyond a left operand's rows is nan.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/gemm/pair_tile.h"
#include "cpu/simd/float_state.h"

namespace {

using namespace fusedrnn;
using Left = PairTile::Left;

std::mt19937 generator(7);

float number() {
  // Some are so small that products of them are denormal, and some sums cancel.
  static std::normal_distribution<float> normal;
  const float value = normal(generator);
  return generator() % 8 == 0 ? std::ldexp(value, -int(generator() % 70)) : value;
}
std::vector<Bfloat16> numbers(Index count) {
  std::vector<Bfloat16> all(static_cast<std::size_t>(count));
  for (Bfloat16& value : all) value = narrow<Bfloat16>(number());
  return all;
}
// As a left operand of the micro-kernel: widened, or as they are.
void put(Bfloat16 value, float& to) { to = widen(value); }
void put(Bfloat16 value, Bfloat16& to) { to = value; }
std::vector<Left> left_of(const std::vector<Bfloat16>& values) {
  std::vector<Left> left(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) put(values[i], left[i]);
  return left;
}

struct Sums {
  std::vector<float> values;
  float* out[4];
  const float* initial[4];

  Sums(int rows, Index blocks) : values(static_cast<std::size_t>(rows * blocks * kBlock)) {
    for (float& value : values) value = number();
    for (Index i = 0; i < blocks; ++i) initial[i] = out[i] = values.data() + i * kBlock;
  }
  void use_in(PairTile::Product& product, Index blocks) {
    product.initial = initial;
    product.out = out;
    product.initial_row = product.out_row = blocks * kBlock;
  }
  void write() const { std::fwrite(values.data(), sizeof(float), values.size(), stdout); }
};

std::vector<float> scratch(kReadyElements);

template <class Operand>
void multiply(int rows, const Operand& left, PairTile::Product& product, Index blocks) {
  PairTile::use(PairTile::make_ready(product.right, product.right_block, product.length, blocks, rows, scratch.data()),
                0, 0, product);
  PairTile::run(rows, left, product, blocks);
}

// Rows at pointers times packed weights, as x and h are multiplied.
void rows_of_weights(int rows, Index inner, Index blocks) {
  const Index in_block = packed_inner<Bfloat16>(inner) * kBlock, stride = inner + inner % 2 + 2;
  const std::vector<Bfloat16> weights = numbers(blocks * kBlock * inner);
  std::vector<Bfloat16> packed(static_cast<std::size_t>(blocks * in_block));
  for (Index i = 0; i < blocks; ++i)
    PairTile::pack_forward(weights.data() + i * kBlock * inner, inner, kBlock, packed.data() + i * in_block);
  std::vector<Bfloat16> values = numbers(rows * stride);
  for (int m = 0; m < rows; ++m)
    for (Index k = inner; k < stride; ++k)
      values[static_cast<std::size_t>(m * stride + k)] = narrow<Bfloat16>(k < inner + inner % 2 ? 0.0f : NAN);
  const std::vector<Left> left = left_of(values);
  std::vector<const Left*> pointers;
  for (int m = 0; m < rows; ++m) pointers.push_back(left.data() + m * stride);
  Sums sums(rows, blocks);
  PairTile::Product product;
  product.length = inner;
  product.right = packed.data();
  product.right_block = in_block;
  sums.use_in(product, blocks);
  multiply(rows, RowPointers<Left>{pointers.data(), 0}, product, blocks);
  sums.write();
}

// Runs of 16 units times weights packed for the way back, as gradients of gates are multiplied.
void runs_of_weights(int rows, Index hidden, int slots, Index columns) {
  const Window window = {0, slots, {1, 0, 2, 3}};
  const Index blocks = blocks_of(columns), runs = blocks_of(hidden) * slots;
  const Index in_block = packed_inner<Bfloat16>(runs * kBlock) * kBlock;
  const std::vector<Bfloat16> weights = numbers(4 * hidden * columns);
  std::vector<Bfloat16> packed(static_cast<std::size_t>(blocks * in_block));
  PairTile::pack_backward(weights.data(), columns, 0, blocks, hidden, window, packed.data(), in_block);
  const std::vector<Left> left = left_of(numbers(runs * rows * kBlock));
  Sums sums(rows, blocks);
  PairTile::Product product;
  product.length = runs * kBlock;
  product.right = packed.data();
  product.right_block = in_block;
  sums.use_in(product, blocks);
  multiply(rows, RunRows<Left>{left.data(), rows * kBlock}, product, blocks);
  sums.write();
}

// Groups of rows, from the last one on, as weights' gradients are added up.
void outer(int units, Index groups, Index blocks) {
  const Index rows = groups * kPairGroup;
  const std::vector<Bfloat16> gradient = numbers(rows * kBlock), panel = numbers(blocks * rows * kBlock);
  std::vector<Bfloat16> turned(gradient.size());
  for (Index r = 0; r < rows; r += 2)
    PairTile::store_pair(gradient.data() + r * kBlock, gradient.data() + (r + 1) * kBlock, kBlock,
                         turned.data() + r * kBlock);
  const std::vector<Left> left = left_of(std::is_same_v<Left, float> ? gradient : turned);
  Sums sums(units, blocks);
  PairTile::Product product;
  product.length = rows;
  product.right = panel.data() + (rows - kPairGroup) * kBlock;
  product.right_block = rows * kBlock;
  sums.use_in(product, blocks);
  PairTile::use(PairTile::make_ready(panel.data(), rows * kBlock, rows, blocks, PairTile::NR, scratch.data()), 0,
                rows - kPairGroup, product);
  PairTile::run(units, PairTile::OuterLeft{left.data() + (rows - kPairGroup) * kBlock}, product, blocks);
  sums.write();
}

}  // namespace

int main() {
  const FloatState state;
  const PairTile::Session session;
  const int most = smaller(PairTile::MR, 6);
  for (int rows = 1; rows <= most; ++rows)
    for (Index blocks = 1; blocks <= 4; ++blocks) {
      for (Index inner : {1, 2, 7, 17, 31, 32, 33, 64, 129, 1000}) rows_of_weights(rows, inner, blocks);
      for (Index hidden : {1, 7, 16, 17, 33, 64})
        for (int slots = 1; slots <= 4; ++slots) runs_of_weights(rows, hidden, slots, blocks * kBlock - hidden % 5);
      for (Index groups : {1, 2, 5}) outer(rows, groups, blocks);
    }
}
