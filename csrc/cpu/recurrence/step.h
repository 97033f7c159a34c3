// One step of one direction of one layer, for every cell. Each sum runs as in the sequence driver (bias, x terms, h
// terms), so that both give the same bits; here it stays in its register from the first term to the last.
#pragma once
#include "cpu/gemm/pack.h"
#include "cpu/runtime/worker.h"
#include "cpu/simd/storage.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Rows that a tile of a step sums at once.
constexpr int kStepRows = kRegisters == 32 ? 4 : 2;

// A run of consecutive slots.
struct Slots {
  int first, count;
  constexpr int end() const { return first + count; }
};

// Slots that a phase of a step sums, and those of them that x feeds.
constexpr Slots summed_slots(const CellTraits& traits, int phase) {
  if (traits.phases == 1) return {0, traits.slots};
  return {traits.recurrent[phase].first, traits.recurrent[phase].count};
}
constexpr Slots fed_slots(const CellTraits& traits, int phase) {
  const Slots summed = summed_slots(traits, phase);
  const int end = traits.input.first + traits.input.count;
  const int first = summed.first > traits.input.first ? summed.first : traits.input.first;
  return {first, (summed.end() < end ? summed.end() : end) - first};
}

// What a step from packed weights and one from the caller's own have in common: the cell's loop over a tile of sums.
template <class Cell, class T>
class StepTile {
 protected:
  using A = Accumulator<T>;
  using V = Vec<A>;
  static constexpr CellTraits traits = Cell::traits;
  static constexpr bool has_c = traits.states == 2;
  static constexpr int slots = traits.slots;

  explicit StepTile(const StepArguments<T>& arguments)
      : a(arguments), hidden(a.hidden_size), blocks(blocks_of(hidden)) {}

  const StepArguments<T>& a;
  const Index hidden, blocks;

  // Left operand of a phase's product with weight_hh.
  template <int kPhase>
  const T* left(Index row) const {
    return kPhase == 0 ? a.h.at(row) : a.operand + row * blocks * kBlock;
  }
  A* kept(Index row, int slot) const { return a.kept + (row * slots + slot) * blocks * kBlock; }
  int units_from(Index unit) const { return static_cast<int>(larger(0, smaller(V::lanes, hidden - unit))); }

  // One vector of units of a row: sums of the phase's slots at sum, sum + stride, ...
  template <int kPhase>
  FUSEDRNN_NOINLINE void finish(Index row, Index unit, const A* sum, Index stride, const V* per_unit) const {
    if (a.clip > A(0))
      finish_with<kPhase>(row, unit, sum, stride, per_unit, Clipped<V>(V(a.clip)));
    else
      finish_with<kPhase>(row, unit, sum, stride, per_unit, Unclipped());
  }
  template <int kPhase, class Clip>
  FUSEDRNN_INLINE void finish_with(Index row, Index unit, const A* sum, Index stride, const V* per_unit,
                                   const Clip& clip) const {
    constexpr Slots summed = summed_slots(traits, kPhase);
    constexpr bool first_of_two = kPhase + 1 < traits.phases, second_of_two = kPhase > 0;
    const int units = units_from(unit);
    V value[slots];
    for (int slot = 0; slot < slots; ++slot) {
      if (slot >= summed.first && slot < summed.end())
        value[slot] = V::load(sum + (slot - summed.first) * stride);
      else
        value[slot] = second_of_two ? V::load(kept(row, slot) + unit) : V(A(0));
    }
    State<V> previous = {load_partial(a.h.at(row) + unit, units), V(A(0))}, next;
    if constexpr (first_of_two) {
      store(Cell::operand(value, previous, clip), a.operand + row * blocks * kBlock + unit);
      for (int slot = summed.first; slot < summed.end(); ++slot) value[slot].store(kept(row, slot) + unit);
    } else {
      if constexpr (has_c) previous.c = V::load_partial(a.c.at(row) + unit, units);
      Cell::forward(value, previous, per_unit, next, clip);
      store_partial(next.h, a.h_next.at(row) + unit, units);
      if (a.y.data) store_partial(next.h, a.y.at(row) + unit, units);
      if constexpr (has_c) next.c.store_partial(a.c_next.at(row) + unit, units);
      if (a.gates.data) record(row, unit, value, next);
    }
  }

  // What the backward pass needs; it reads whole blocks of units.
  void record(Index row, Index unit, const V* value, const State<V>& next) const {
    A* gate = a.gates.at(unit / kBlock, row) + unit % kBlock;
    for (int slot = 0; slot < slots; ++slot) value[slot].store(gate + slot * kBlock);
    if constexpr (has_c) next.c.store(a.cells.at(unit / kBlock, row) + unit % kBlock);
  }
};

// Columns, which are vectors, that a tile sums at once. The sums of a single row have only each other to hide the
// latency of a multiply-add behind (4 cycles, up to two started in each); with more rows fewer columns will do.
constexpr int step_columns(int rows) { return rows == 1 ? 8 : 4; }
// They lie over so many vectors of each of so many unit blocks, in every slot of the phase.
template <class A>
constexpr int step_parts(const CellTraits& traits, int phase, int rows) {
  constexpr int vectors_of_block = kBlock / Vec<A>::lanes;
  return static_cast<int>(smaller(vectors_of_block, larger(1, step_columns(rows) / summed_slots(traits, phase).count)));
}
template <class A>
constexpr int step_blocks(const CellTraits& traits, int phase, int rows) {
  const int of_a_block = summed_slots(traits, phase).count * step_parts<A>(traits, phase, rows);
  return of_a_block * 4 <= step_columns(rows) ? 4 : of_a_block * 2 <= step_columns(rows) ? 2 : 1;
}

// The packed weights of one product of a phase, for consecutive unit blocks from some one on: those of block u, slot s
// and term k at data + u * block + s * slot + k * step.
template <class A>
struct StepPanel {
  const A* data;
  Index block, slot, step;
};

// A stepper's own order: biases, the per-unit parameter, then for each phase a panel for each group of unit blocks,
// which holds [term of x][block of the group][slot][16] and after it the same of h: a row's tile reads it from end to
// end.
template <class Cell, class T>
class StepOrder {
  using A = Accumulator<T>;
  static constexpr CellTraits traits = Cell::traits;
  static constexpr int slots = traits.slots;

 public:
  explicit StepOrder(const StepArguments<T>& arguments)
      : a(arguments), hidden(a.hidden_size), blocks(blocks_of(hidden)) {}

  // Elements of `packed`.
  Index packed_size() const { return panel_at(traits.phases, 0); }

  void pack(const Weights<T>& weights, A* packed) const {
    for (Index i = 0; i < packed_size(); ++i) packed[i] = A(0);
    for (Index unit = 0; unit < hidden; ++unit) {
      for (int slot = 0; slot < slots; ++slot) {
        // A slot's bias is the sum of the biases of the products that feed it.
        A& bias = packed[bias_at(unit / kBlock, slot) + unit % kBlock];
        add_bias(weights.bias_ih, traits.input, slot, unit, bias);
        for (int phase = 0; phase < traits.phases; ++phase)
          add_bias(weights.bias_hh, traits.recurrent[phase], slot, unit, bias);
      }
      for (int row = 0; row < traits.per_unit.rows; ++row)
        packed[per_unit_at(unit / kBlock, row) + unit % kBlock] = widen(weights.per_unit[row * hidden + unit]);
    }
    for (int phase = 0; phase < traits.phases; ++phase)
      for (Index first = 0; first < blocks; first += group(phase)) {
        A* panel = packed + panel_at(phase, first);
        const Slots fed = fed_slots(traits, phase);
        const Index width = group_width(phase, first);
        pack_panel(weights.weight_ih, a.input_size, traits.input, fed, first, width, panel);
        panel += a.input_size * width * fed.count * kBlock;
        const Window& window = traits.recurrent[phase];
        pack_panel(weights.weight_hh, hidden, window, {window.first, window.count}, first, width, panel);
      }
  }

  const A* bias(Index block, int slot) const { return a.packed + bias_at(block, slot); }
  const A* per_unit(Index block, int row) const { return a.packed + per_unit_at(block, row); }
  // Of the blocks from first + done on, in the group that begins at `first`.
  template <int kPhase>
  FUSEDRNN_INLINE StepPanel<A> input(Index first, Index done) const {
    constexpr Index block = fed_slots(traits, kPhase).count * kBlock;
    return {a.packed + panel_at(kPhase, first) + done * block, block, kBlock, group_width(kPhase, first) * block};
  }
  template <int kPhase>
  FUSEDRNN_INLINE StepPanel<A> recurrent(Index first, Index done) const {
    constexpr Index block = traits.recurrent[kPhase].count * kBlock, of_x = fed_slots(traits, kPhase).count * kBlock;
    const Index width = group_width(kPhase, first);
    const A* panel = a.packed + panel_at(kPhase, first) + a.input_size * width * of_x;
    return {panel + done * block, block, kBlock, width * block};
  }

 private:
  const StepArguments<T>& a;
  const Index hidden, blocks;

  static constexpr Index group(int phase) { return step_blocks<A>(traits, phase, 1); }
  Index group_width(int phase, Index first) const { return smaller(group(phase), blocks - first); }
  Index bias_at(Index block, int slot) const { return (block * slots + slot) * kBlock; }
  Index per_unit_at(Index block, int row) const {
    return (blocks * slots + block * traits.per_unit.rows + row) * kBlock;
  }
  Index panel_at(int phase, Index first) const {
    Index start = blocks * (slots + traits.per_unit.rows) * kBlock;
    for (int earlier = 0; earlier < phase; ++earlier) start += blocks * panel_of_block(earlier);
    return phase < traits.phases ? start + first * panel_of_block(phase) : start;
  }
  Index panel_of_block(int phase) const {
    return (a.input_size * fed_slots(traits, phase).count + hidden * traits.recurrent[phase].count) * kBlock;
  }

  void add_bias(const T* from, const Window& window, int slot, Index unit, A& bias) const {
    if (from && slot >= window.first && slot < window.first + window.count)
      bias += widen(from[window.gate[slot - window.first] * hidden + unit]);
  }
  void pack_panel(const T* weight, Index inner, const Window& window, Slots fed, Index first, Index width,
                  A* panel) const {
    for (Index u = 0; u < smaller(width * kBlock, hidden - first * kBlock); ++u)
      for (int slot = 0; slot < fed.count; ++slot) {
        const T* from = weight + (window.gate[fed.first + slot - window.first] * hidden + first * kBlock + u) * inner;
        A* to = panel + (u / kBlock * fed.count + slot) * kBlock + u % kBlock;
        for (Index k = 0; k < inner; ++k) to[k * width * fed.count * kBlock] = widen(from[k]);
      }
  }
};

// The order of the forward driver's panels.
template <class Cell, class T>
class SequenceOrder {
  using A = Accumulator<T>;
  static constexpr CellTraits traits = Cell::traits;

 public:
  explicit SequenceOrder(const StepArguments<T>& arguments) : a(arguments) {}

  const A* bias(Index block, int slot) const { return a.panels.bias + (block * traits.slots + slot) * kBlock; }
  const A* per_unit(Index block, int row) const {
    return a.panels.per_unit + (block * traits.per_unit.rows + row) * kBlock;
  }
  template <int kPhase>
  FUSEDRNN_INLINE StepPanel<A> input(Index first, Index done) const {
    constexpr Index columns = traits.input.count, before = fed_slots(traits, kPhase).first - traits.input.first;
    const Index slot = a.input_size * kBlock;
    return {a.panels.weight_ih + ((first + done) * columns + before) * slot, columns * slot, slot, kBlock};
  }
  template <int kPhase>
  FUSEDRNN_INLINE StepPanel<A> recurrent(Index first, Index done) const {
    constexpr Index columns = traits.recurrent[kPhase].count;
    const Index slot = a.hidden_size * kBlock;
    const Index phase = phase_start(traits, kPhase, blocks_of(a.hidden_size), a.hidden_size);
    return {a.panels.weight_hh + phase + (first + done) * columns * slot, columns * slot, slot, kBlock};
  }

 private:
  const StepArguments<T>& a;
};

// From weights that were packed before, in one order or the other.
template <class Cell, class T, template <class, class> class Order>
class PackedStep : StepTile<Cell, T> {
  using Base = StepTile<Cell, T>;
  using Base::a;
  using Base::blocks;
  using Base::hidden;
  using Base::slots;
  using Base::traits;
  using typename Base::A;
  using typename Base::V;

 public:
  explicit PackedStep(const StepArguments<T>& arguments) : Base(arguments), weights(arguments) {}

  void run(Worker& worker) const {
    phase<0>(worker);
    if constexpr (traits.phases == 2) phase<1>(worker);
  }

 private:
  const Order<Cell, T> weights;

  static constexpr Index group(int phase) { return step_blocks<A>(traits, phase, 1); }
  Index group_width(int phase, Index first) const { return smaller(group(phase), blocks - first); }

  template <int kPhase>
  void phase(Worker& worker) const {
    const Range rows = part_of(a.rows, worker.row_part(), worker.split.row_parts);
    const Index groups = (blocks + group(kPhase) - 1) / group(kPhase);
    const Range own = part_of(groups, worker.unit_part(), worker.split.unit_parts);
    for (Index i = own.first; i < own.last; ++i) {
      const Index first = (a.reversed ? own.first + own.last - 1 - i : i) * group(kPhase);
      for (Index row = rows.first; row < rows.last;) row += tile_rows<kPhase, kStepRows>(row, rows.last - row, first);
    }
    worker.meet_row();
  }

  // Covers a group of unit blocks for as many rows as fit a tile; returns how many.
  template <int kPhase, int kRows>
  int tile_rows(Index row, Index count, Index first) const {
    if constexpr (kRows > 1)
      if (count < kRows) return tile_rows<kPhase, kRows / 2>(row, count, first);
    tile_blocks<kPhase, kRows, step_blocks<A>(traits, kPhase, kRows)>(row, first, 0);
    return kRows;
  }
  template <int kPhase, int kRows, int kBlocks>
  void tile_blocks(Index row, Index first, Index done) const {
    constexpr int width = step_parts<A>(traits, kPhase, kRows) * V::lanes;
    const Index count = group_width(kPhase, first);
    for (; done + kBlocks <= count; done += kBlocks)
      for (int unit = 0; unit < kBlock; unit += width) tile<kPhase, kRows, kBlocks>(row, first, done, unit);
    if constexpr (kBlocks > 1)
      if (done < count) tile_blocks<kPhase, kRows, kBlocks / 2>(row, first, done);
  }

  template <int kPhase, int kRows, int kBlocks>
  FUSEDRNN_NOINLINE void tile(Index row, Index first, Index done, int unit) const {
    constexpr Slots summed = summed_slots(traits, kPhase), fed = fed_slots(traits, kPhase);
    constexpr Window window = traits.recurrent[kPhase];
    constexpr int of_block = step_parts<A>(traits, kPhase, kRows), of_slot = of_block * V::lanes;
    V sum[kRows][kBlocks * summed.count * of_block];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < kBlocks * summed.count * of_block; ++v)
        sum[m][v] = V::load(
            weights.bias(first + done + v / of_block / summed.count, summed.first + v / of_block % summed.count) +
            unit + v % of_block * V::lanes);
    const T *x[kRows], *h[kRows];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      x[m] = a.x.at(row + m);
      h[m] = this->template left<kPhase>(row + m);
    }
    accumulate<kRows, kBlocks, fed.first - summed.first, fed.count, summed.count, of_block>(
        sum, x, a.input_size, weights.template input<kPhase>(first, done), unit);
    accumulate<kRows, kBlocks, window.first - summed.first, window.count, summed.count, of_block>(
        sum, h, hidden, weights.template recurrent<kPhase>(first, done), unit);
    alignas(64) A sums[kRows][kBlocks][summed.count * of_slot];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < kBlocks * summed.count * of_block; ++v) sum[m][v].store(sums[m][0] + v * V::lanes);
    for (int m = 0; m < kRows; ++m)
      for (int u = 0; u < kBlocks; ++u)
        for (int lane = 0; lane < of_slot; lane += V::lanes)
          finish_vector<kPhase>(row + m, first + done + u, unit + lane, sums[m][u] + lane, of_slot);
  }

  // Adds left . panel to the slots [kFirst, kFirst + kCount) of kSummed, for the units from `unit` of each block on.
  template <int kRows, int kBlocks, int kFirst, int kCount, int kSummed, int kParts, int kColumns, class Left>
  static FUSEDRNN_INLINE void accumulate(V (&sum)[kRows][kColumns], const Left* const (&left)[kRows], Index inner,
                                         const StepPanel<A>& panel, int unit) {
    const A* from = panel.data + unit;
    for (Index k = 0; k < inner; ++k, from += panel.step) {
#pragma GCC unroll 4
      for (int u = 0; u < kBlocks; ++u)
#pragma GCC unroll 4
        for (int slot = 0; slot < kCount; ++slot)
#pragma GCC unroll 8
          for (int v = 0; v < kParts; ++v) {
            const V right = V::load(from + u * panel.block + slot * panel.slot + v * V::lanes);
            const int column = (u * kSummed + kFirst + slot) * kParts + v;
#pragma GCC unroll 4
            for (int m = 0; m < kRows; ++m) sum[m][column] = fma(V(widen(left[m][k])), right, sum[m][column]);
          }
    }
  }

  template <int kPhase>
  FUSEDRNN_INLINE void finish_vector(Index row, Index block, int unit, const A* sum, Index stride) const {
    V per_unit[traits.per_unit.rows + 1];
    for (int k = 0; k < traits.per_unit.rows; ++k) per_unit[k] = V::load(weights.per_unit(block, k) + unit);
    this->template finish<kPhase>(row, block * kBlock + unit, sum, stride, per_unit);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
