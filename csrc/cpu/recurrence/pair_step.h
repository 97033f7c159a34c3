// One step of one direction of one layer from packed weights of 16 bits, for every cell. The sums are the sequence
// driver's, by the same micro-kernel: bias, x terms, h terms.
#pragma once
#include "cpu/gemm/pair_tile.h"
#include "cpu/recurrence/step.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Cell>
class PairStep : StepTile<Cell, Bfloat16> {
  using T = Bfloat16;
  using Base = StepTile<Cell, T>;
  using Base::a;
  using Base::blocks;
  using Base::hidden;
  using Base::slots;
  using Base::traits;
  using typename Base::V;
  static constexpr Index kRunBlocks = PairTile::NR / kBlock;
  static constexpr int kMostRows = PairTile::kRowsUnready;

 public:
  explicit PairStep(const StepArguments<T>& arguments) : Base(arguments) {}

  void run(Worker& worker) const {
    phase<0>(worker);
    if constexpr (traits.phases == 2) phase<1>(worker);
  }

 private:
  // Unit blocks whose slots of a phase fill a run's columns.
  static constexpr Index group(int phase) { return larger(1, kRunBlocks / summed_slots(traits, phase).count); }

  template <int kPhase>
  void phase(Worker& worker) const {
    const Range rows = part_of(a.rows, worker.row_part(), worker.split.row_parts);
    const Index groups = (blocks + group(kPhase) - 1) / group(kPhase);
    const Range own = part_of(groups, worker.unit_part(), worker.split.unit_parts);
    for (Index i = own.first; i < own.last; ++i) {
      const Index first = (a.reversed ? own.first + own.last - 1 - i : i) * group(kPhase);
      for (Index row = rows.first; row < rows.last;) {
        const int count = tile_rows<PairTile, kMostRows>(rows.last - row);
        tile<kPhase>(row, count, first, smaller(group(kPhase), blocks - first));
        row += count;
      }
    }
    worker.meet_row();
  }

  // `width` unit blocks from `first` on for `rows` rows.
  template <int kPhase>
  void tile(Index row, int rows, Index first, Index width) const {
    constexpr Slots summed = summed_slots(traits, kPhase), fed = fed_slots(traits, kPhase);
    constexpr Window window = traits.recurrent[kPhase];
    constexpr Index stride = group(kPhase) * summed.count * kBlock;
    alignas(64) float sums[kMostRows * stride];
    for (int m = 0; m < rows; ++m)
      for (Index i = 0; i < width; ++i)
        copy_padded_run(a.panels.bias + ((first + i) * slots + summed.first) * kBlock, summed.count,
                        sums + m * stride + i * summed.count * kBlock);
    const T *x[kMostRows] = {}, *left[kMostRows] = {};
    for (int m = 0; m < rows; ++m) {
      x[m] = a.x.at(row + m);
      left[m] = this->template left<kPhase>(row + m);
    }
    const Index in_x = packed_inner<T>(a.input_size) * kBlock, in_h = packed_inner<T>(hidden) * kBlock;
    constexpr int before = fed.first - traits.input.first;  // x's columns that another phase sums
    for (Index i = 0; i < width; ++i)
      add(x, rows, a.input_size, a.panels.weight_ih + ((first + i) * traits.input.count + before) * in_x, in_x,
          sums + (i * summed.count + fed.first - summed.first) * kBlock, fed.count, stride);
    const Index phase = phase_start(traits, kPhase, blocks, packed_inner<T>(hidden));
    for (Index i = 0; i < width; ++i)
      add(left, rows, hidden, a.panels.weight_hh + phase + (first + i) * window.count * in_h, in_h,
          sums + (i * summed.count + window.first - summed.first) * kBlock, window.count, stride);
    for (int m = 0; m < rows; ++m)
      for (Index i = 0; i < width; ++i)
        finish_block<kPhase>(row + m, first + i, sums + m * stride + i * summed.count * kBlock);
  }

  static void copy_padded_run(const float* from, int count, float* to) {
    for (int i = 0; i < count; ++i) copy_padded(from + i * kBlock, kBlock, to + i * kBlock);
  }

  // sums += left . `count` blocks of packed columns.
  static void add(const T* const* left, int rows, Index inner, const T* packed, Index in_block, float* sums, int count,
                  Index stride) {
    float* out[kRunBlocks];
    for (int i = 0; i < count; ++i) out[i] = sums + i * kBlock;
    PairTile::Product product;
    product.length = inner;
    product.right = packed;
    product.right_block = in_block;
    product.initial = product.out = out;
    product.initial_row = product.out_row = stride;
    PairTile::run(rows, RowPointers<T>{left, 0}, product, count);
  }

  template <int kPhase>
  void finish_block(Index row, Index block, const float* sums) const {
    for (Index u = 0; u < kBlock; u += V::lanes) {
      V per_unit[traits.per_unit.rows + 1];
      for (int k = 0; k < traits.per_unit.rows; ++k)
        per_unit[k] = V::load(a.panels.per_unit + (block * traits.per_unit.rows + k) * kBlock + u);
      this->template finish<kPhase>(row, block * kBlock + u, sums + u, kBlock, per_unit);
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
