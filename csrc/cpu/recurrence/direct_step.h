// One step from the caller's own weights. Packing them would take as long as several steps: here each weight is read
// once, where it lies, and turned into the engine's order in registers.
#pragma once
#include "cpu/recurrence/step.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Rows that a square of weights, once turned, is used for: their sums in one slot fill what registers the square
// leaves.
constexpr int kDirectRows = kRegisters == 32 ? 8 : 4;

// Vectors of units that so many rows sum at once. A sum waits for the one before it, so a row or two alone keep the
// multipliers busy with several vectors only. Where vectors are of 16, turning a square takes longer than that wait.
constexpr int direct_vectors(int rows) { return kVectorBytes < 64 && rows <= 2 ? 2 : 1; }

// A square is turned anew for every kDirectRows rows. Packing turns it once, but writes it and reads it again;
// measured, the two break even at three turns, in wide layers later.
constexpr Index kMostDirectRows = 3 * kDirectRows;

// The columns [k, k + columns) of `units` rows of a weight matrix, at most a vector of each.
template <bool kWhole, class A, int kRows, class Left, class T>
FUSEDRNN_INLINE void add_square(Vec<A> (&sum)[kRows], const Left* const* left, const T* weight, Index inner, Index k,
                                int units, int columns) {
  using V = Vec<A>;
  V line[V::lanes];
#pragma GCC unroll 16
  for (int u = 0; u < V::lanes; ++u) {
    if constexpr (kWhole)
      line[u] = load(weight + u * inner + k);
    else
      line[u] = u < units ? load_partial(weight + u * inner + k, columns) : V(A(0));
  }
  transpose<A>(line);
#pragma GCC unroll 16
  for (int i = 0; i < V::lanes; ++i) {
    if (!kWhole && i == columns) break;
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) sum[m] = fma(V(widen(left[m][k + i])), line[i], sum[m]);
  }
}

// sums(m, :) += left(m, :) . transposed weight, for `units` rows of the weights, columns in ascending order.
template <int kRows, int kVectors, class T, class Left>
FUSEDRNN_NOINLINE void add_rows(const T* weight, Index inner, int units, const Left* const* left, Accumulator<T>* sums,
                                Index stride) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  constexpr int lanes = V::lanes;
  V sum[kVectors][kRows];
#pragma GCC unroll 32
  for (int i = 0; i < kVectors * kRows; ++i)
    sum[i / kRows][i % kRows] = V::load(sums + i % kRows * stride + i / kRows * lanes);
  constexpr Index line = larger(lanes, 64 / static_cast<Index>(sizeof(T)));  // of the cache: read whole, then left
  Index k = 0;
  for (; units == kVectors * lanes && k + line <= inner; k += line)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
      for (Index i = 0; i < line; i += lanes)
        add_square<true>(sum[v], left, weight + v * lanes * inner, inner, k + i, lanes, lanes);
  for (; k < inner; k += lanes) {
    const int columns = static_cast<int>(smaller(lanes, inner - k));
    for (int v = 0; v < kVectors; ++v) {
      const int there = static_cast<int>(larger(0, smaller(lanes, units - v * lanes)));
      add_square<false>(sum[v], left, weight + v * lanes * inner, inner, k, there, columns);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kVectors * kRows; ++i)
    sum[i / kRows][i % kRows].store(sums + i % kRows * stride + i / kRows * lanes);
}

template <class Cell, class T>
class DirectStep : StepTile<Cell, T> {
  using Base = StepTile<Cell, T>;
  using Base::a;
  using Base::blocks;
  using Base::hidden;
  using Base::traits;
  using typename Base::A;
  using typename Base::V;
  static constexpr int lanes = V::lanes;

 public:
  explicit DirectStep(const StepArguments<T>& arguments) : Base(arguments) {}

  void run(Worker& worker) const {
    phase<0>(worker);
    if constexpr (traits.phases == 2) phase<1>(worker);
  }

 private:
  template <int kPhase>
  void phase(Worker& worker) const {
    const Range rows = part_of(a.rows, worker.row_part(), worker.split.row_parts);
    const Range own = part_of(blocks, worker.unit_part(), worker.split.unit_parts);
    const Index end = a.gates.data ? own.last * kBlock : smaller(own.last * kBlock, hidden);
    constexpr Index units = direct_vectors(1) * lanes;
    for (Index unit = own.first * kBlock; unit < end; unit += units)
      for (Index row = rows.first; row < rows.last; row += kDirectRows)
        tile_rows<kPhase, kDirectRows>(row, smaller(kDirectRows, rows.last - row), unit, smaller(end, unit + units));
    worker.meet_row();
  }

  template <int kPhase, int kRows>
  void tile_rows(Index row, Index count, Index unit, Index end) const {
    if constexpr (kRows > 1)
      if (count <= kRows / 2) return tile_rows<kPhase, kRows / 2>(row, count, unit, end);
    constexpr int vectors = direct_vectors(kRows);
    for (; unit + vectors * lanes <= end; unit += vectors * lanes) tile<kPhase, kRows, vectors>(row, count, unit);
    for (; unit < end; unit += lanes) tile<kPhase, kRows, 1>(row, count, unit);
  }

  // Vectors of units from `unit` on, in every slot of the phase. Of the kRows rows `count` are there; the last one
  // stands in for the others.
  template <int kPhase, int kRows, int kVectors>
  FUSEDRNN_NOINLINE void tile(Index row, Index count, Index unit) const {
    constexpr Slots summed = summed_slots(traits, kPhase), fed = fed_slots(traits, kPhase);
    constexpr Window window = traits.recurrent[kPhase];
    constexpr Index width = kVectors * lanes;
    alignas(64) A sums[kRows][summed.count * width];
    for (int slot = 0; slot < summed.count; ++slot) {
      for (int v = 0; v < kVectors; ++v) {
        const V bias = bias_of(summed.first + slot, unit + v * lanes);
        for (int m = 0; m < kRows; ++m) bias.store(sums[m] + slot * width + v * lanes);
      }
    }
    const T *x[kRows], *h[kRows];
    for (int m = 0; m < kRows; ++m) {
      const Index there = row + smaller(m, count - 1);
      x[m] = a.x.at(there);
      h[m] = this->template left<kPhase>(there);
    }
    const int input_gate = fed.first - traits.input.first;
    accumulate<kRows, kVectors>(sums[0], summed.count, fed.first - summed.first, fed.count, x, a.weights.weight_ih,
                                a.input_size, traits.input.gate + input_gate, unit);
    accumulate<kRows, kVectors>(sums[0], summed.count, window.first - summed.first, window.count, h,
                                a.weights.weight_hh, hidden, window.gate, unit);
    for (int v = 0; v < kVectors; ++v) finish_vector<kPhase>(row, count, unit + v * lanes, sums[0] + v * lanes, width);
  }

  // A vector of units of `count` rows, whose sums lie a `width` apart in the slots of the phase.
  template <int kPhase>
  void finish_vector(Index row, Index count, Index unit, const A* sums, Index width) const {
    V per_unit[traits.per_unit.rows + 1];
    for (int k = 0; k < traits.per_unit.rows; ++k)
      per_unit[k] = load_partial(a.weights.per_unit + k * hidden + unit, this->units_from(unit));
    for (int m = 0; m < count; ++m)
      this->template finish<kPhase>(row + m, unit, sums + m * summed_slots(traits, kPhase).count * width, width,
                                    per_unit);
  }

  V bias_of(int slot, Index unit) const {
    V bias(A(0));
    add_bias(a.weights.bias_ih, traits.input, slot, unit, bias);
    for (int phase = 0; phase < traits.phases; ++phase)
      add_bias(a.weights.bias_hh, traits.recurrent[phase], slot, unit, bias);
    return bias;
  }
  void add_bias(const T* from, const Window& window, int slot, Index unit, V& bias) const {
    if (from && slot >= window.first && slot < window.first + window.count)
      bias += load_partial(from + window.gate[slot - window.first] * hidden + unit, this->units_from(unit));
  }

  // Adds left . weight to the slots from `first` on, of `slots` in a row's sums, fed by the gates at `gate`, one slot
  // after the other.
  template <int kRows, int kVectors, class Left>
  void accumulate(A* sums, int slots, int first, int count, const Left* const* left, const T* weight, Index inner,
                  const int* gate, Index unit) const {
    constexpr Index width = kVectors * lanes;
    const int units = static_cast<int>(larger(0, smaller(width, hidden - unit)));
    for (int slot = 0; slot < count; ++slot)
      add_rows<kRows, kVectors>(weight + (gate[slot] * hidden + unit) * inner, inner, units, left,
                                sums + (first + slot) * width, slots * width);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
