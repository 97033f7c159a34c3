// One step of one direction of one layer with weights of 8 bits, for every cell:
//   z = (bias + (s_x s_w) sum_x) + (s_h s_w) sum_h, by two fused multiply-adds in float32,
// with a scale s_w of each row of a weight matrix and s of each row of x and of h. The equations of the cell and its c
// are float32.
#pragma once
#include "cpu/int8.h"
#include "cpu/recurrence/int8_product.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// h of an LSTM or a GRU lies within it, unless a caller's does not.
constexpr float kInt8LeastState = 1;

template <class Cell>
class Int8Step : StepTile<Cell, float> {
  using Base = StepTile<Cell, float>;
  using Base::a;
  using Base::blocks;
  using Base::hidden;
  using Base::slots;
  using Base::traits;
  using V = Vec<float>;

 public:
  Int8Step(const StepArguments<float>& arguments, const Int8Direction& direction, Worker& worker)
      : Base(arguments),
        layout{traits, a.input_size, a.hidden_size},
        d(direction),
        w(worker),
        kept(d.left + w.thread * d.thread_groups) {}

  void run() {
    const Range rows = part_of(a.rows, w.row_part(), w.split.row_parts);
    const Range own = part_of(blocks, w.unit_part(), w.split.unit_parts);
    for (Index row = rows.first; row < rows.last; ++row) keep_input(row - rows.first, a.x.at(row));
    for (Index i = own.first; i < own.last; ++i)
      project(in_order(own, i, a.reversed), 0, rows.last - rows.first, rows.first);
    advance(rows, own, a.reversed, 0);
    w.meet_row();
  }

  // Rounds a row of x, the index-th of those that `project` multiplies.
  FUSEDRNN_NOINLINE void keep_input(Index index, const float* x) { keep(kept, a.input_size, index, x, 0); }

  // Of a block: bias and x . weight_ih of `count` rows of those kept, from `index` on, to d.sums from row `first` on.
  FUSEDRNN_NOINLINE void project(Index block, Index index, Index count, Index first) {
    const Int8Panel panel = {d.packed + layout.input_at(block), a.input_size, traits.input.count};
    const float* constants = constants_of(block);
    for (Index row = 0, rows; row < count; row += rows) {
      rows = smaller(kInt8Rows, count - row);
      Int8Row tile[kInt8Rows];
      for (Index m = 0; m < rows; ++m) tile[m] = kept_row(kept, a.input_size, index + row + m);
      alignas(64) float sums[kInt8Rows][traits.input.count * kBlock];
      multiply_int8(panel, {0, traits.input.count}, tile, static_cast<int>(rows), sums[0]);
      for (Index m = 0; m < rows; ++m) add_input(constants, tile[m].scale, sums[m], sums_of(first + row + m, block));
    }
  }

  // The rest of a step of the rows, for the blocks `own`, from d.sums, in which row 0 is at `first_sum`. Threads of the
  // same rows are to meet after it.
  void advance(Range rows, Range own, bool reversed, Index first_sum) {
    phase<0>(rows, own, reversed, first_sum);
    if constexpr (traits.phases == 2) {
      w.meet_row();
      phase<1>(rows, own, reversed, first_sum);
    }
  }

 private:
  const Int8Layout layout;
  const Int8Direction& d;
  Worker& w;
  std::uint64_t* const kept;

  static Index in_order(Range own, Index i, bool reversed) { return reversed ? own.first + own.last - 1 - i : i; }
  const float* constants_of(Index block) const {
    return reinterpret_cast<const float*>(d.packed + layout.constants_at(block));
  }
  float* sums_of(Index row, Index block) const { return d.sums + (row * blocks + block) * slots * kBlock; }

  // Rows are kept one behind the other, each with its scale in eight bytes before it.
  static void keep(std::uint64_t* base, Index count, Index index, const float* row, float least) {
    std::uint64_t* at = base + index * (Int8Panel::groups_of(count) + 1);
    at[0] = bits_of(quantized(row, count, least, at + 1).scale);
  }
  static Int8Row kept_row(const std::uint64_t* base, Index count, Index index) {
    const std::uint64_t* at = base + index * (Int8Panel::groups_of(count) + 1);
    return {at + 1, float_of(static_cast<std::uint32_t>(at[0]))};
  }

  // A row's z before h comes in.
  void add_input(const float* constants, float scale, const float* sums, float* to) const {
    for (int slot = 0; slot < slots; ++slot)
      for (Index u = 0; u < kBlock; u += V::lanes) {
        V z = V::load(constants + layout.bias_at(slot) + u);
        const int fed = slot - traits.input.first;
        if (fed >= 0 && fed < traits.input.count)
          z = fma(V(scale) * V::load(constants + layout.input_scale_at(fed) + u), V::load(sums + fed * kBlock + u), z);
        z.store(to + slot * kBlock + u);
      }
  }

  template <int kPhase>
  FUSEDRNN_NOINLINE void phase(Range rows, Range own, bool reversed, Index first_sum) {
    constexpr Window window = traits.recurrent[kPhase];
    std::uint64_t* const states =
        kept + d.thread_groups - (rows.last - rows.first) * (Int8Panel::groups_of(hidden) + 1);
    for (Index row = rows.first; row < rows.last; ++row)
      keep(states, hidden, row - rows.first, Base::template left<kPhase>(row), kInt8LeastState);
    for (Index i = own.first; i < own.last; ++i) {
      const Index block = in_order(own, i, reversed);
      const Int8Panel panel = {d.packed + layout.recurrent_at(kPhase, block), hidden, window.count};
      for (Index row = rows.first, count; row < rows.last; row += count) {
        count = smaller(kInt8Rows, rows.last - row);
        Int8Row tile[kInt8Rows];
        for (Index m = 0; m < count; ++m) tile[m] = kept_row(states, hidden, row - rows.first + m);
        alignas(64) float sums[kInt8Rows][window.count * kBlock];
        multiply_int8(panel, {0, window.count}, tile, static_cast<int>(count), sums[0]);
        for (Index m = 0; m < count; ++m)
          finish_block<kPhase>(row + m, block, tile[m].scale, sums[m], sums_of(first_sum + row + m, block));
      }
    }
  }

  // The cell's loop over a row of a block; z of the slots that h feeds is completed here.
  template <int kPhase>
  void finish_block(Index row, Index block, float scale, const float* sums, float* z) const {
    constexpr Window window = traits.recurrent[kPhase];
    constexpr Slots summed = summed_slots(traits, kPhase);
    const float* constants = constants_of(block);
    for (int slot = 0; slot < window.count; ++slot)
      for (Index u = 0; u < kBlock; u += V::lanes) {
        float* to = z + (window.first + slot) * kBlock + u;
        const V factor = V(scale) * V::load(constants + layout.recurrent_scale_at(kPhase, slot) + u);
        fma(factor, V::load(sums + slot * kBlock + u), V::load(to)).store(to);
      }
    for (Index u = 0; u < kBlock; u += V::lanes) {
      V per_unit[traits.per_unit.rows + 1];
      for (int k = 0; k < traits.per_unit.rows; ++k) per_unit[k] = V::load(constants + layout.per_unit_at(k) + u);
      this->template finish<kPhase>(row, block * kBlock + u, z + summed.first * kBlock + u, kBlock, per_unit);
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
