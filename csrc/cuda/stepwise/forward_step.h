// Element-wise parts of a forward step, for every cell. Arrays of two directions lie one behind the other; "step order"
// means row (step - first) * B + b of a chunk of steps.
#pragma once
#include "cells/registry.h"
#include "cuda/runtime/backend.h"
#include "cuda/runtime/device_code.h"
#include "cuda/runtime/scalar.h"
#include "cuda/stepwise/steps.h"

namespace fusedrnn {
namespace {

template <class T>
struct SequenceOf {
  T* data;
  Index time, row;
  FUSEDRNN_INLINE T* at(Index t, Index b) const { return data + t * time + b * row; }
};

// Calls f with the bound on pre-activations; one branch that all threads of a kernel take alike, and no kernel of its
// own.
template <class A, class Function>
FUSEDRNN_INLINE void with_clip(A limit, const Function& f) {
  if (limit > A(0))
    f(Clipped<Scalar<A>>(Scalar<A>(limit)));
  else
    f(Unclipped());
}

FUSEDRNN_INLINE constexpr bool within(const int first, const int count, int slot) {
  return slot >= first && slot < first + count;
}

// What the steps of a layer read and write, both when it runs and when a segment is made again from its outputs.
template <class T>
struct StepArrays {
  using A = Accumulator<T>;
  Steps steps;
  Index hidden;
  A clip;             // bound on every gate's pre-activation, or 0
  Index first;        // step of the chunk's first row
  Index capacity;     // rows of a chunk, by direction
  const A* bias;      // (D, slots, H)
  const A* per_unit;  // (D, rows, H)
  A* gates;           // (D, capacity, slots, H) in step order: x's part of the slots, then the slots activated
  const A* products;  // (D, product_rows, columns, H): h's part, of one step's rows or of the whole chunk's
  Index product_rows, columns;
  const T* h_in;  // (D, h_rows, H): the state before: one step's rows, or the whole chunk's
  Index h_rows;
  T* h_out;         // (D, B, H), or null
  A* c;             // (D, B, H): before and after
  T* operand;       // (D, h_rows, H): left operand of a second phase
  SequenceOf<T> y;  // data null: not written
  A* cells;         // (D, cell_rows, H) in step order from `first` on, or null
  Index cell_rows;
  bool keep;  // write the activated slots back

  FUSEDRNN_INLINE Index gate_at(Index d, Index s, Index b, Index slots, Index u) const {
    return ((d * capacity + (s - first) * steps.rows + b) * slots) * hidden + u;
  }
  FUSEDRNN_INLINE Index cell_at(Index d, Index s, Index b, Index u) const {
    return (d * cell_rows + (s - first) * steps.rows + b) * hidden + u;
  }
  // Row of an array that has either one step's rows or the chunk's.
  FUSEDRNN_INLINE Index row_of(Index d, Index s, Index b, Index rows) const {
    return d * rows + (rows == steps.rows ? 0 : (s - first) * steps.rows) + b;
  }
};

// After the first product of a cell of two phases: activates its slots and writes the second product's left operand.
template <class Cell, class T>
struct OperandStep {
  using A = Accumulator<T>;
  using V = Scalar<A>;
  StepArrays<T> a;
  Index begin;  // step of row 0

  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index r, Index u) const {
    constexpr CellTraits traits = Cell::traits;
    constexpr int slots = traits.slots, first = traits.recurrent[0].first, count = traits.recurrent[0].count;
    const Index s = begin + r / a.steps.rows, b = r % a.steps.rows;
    const Index n = a.steps.length(b), state = a.row_of(d, s, b, a.h_rows) * a.hidden + u;
    if (s >= n) {
      a.operand[state] = narrow<T>(A(0));
      return;
    }
    const bool cut = a.steps.cut(d, s, b, n);
    A* const gate = a.gates + a.gate_at(d, s, b, slots, u);
    const A* const product = a.products + a.row_of(d, s, b, a.product_rows) * a.columns * a.hidden + u;
    V slot[slots];
    FUSEDRNN_UNROLL
    for (int k = 0; k < slots; ++k) slot[k] = V(A(0));
    FUSEDRNN_UNROLL
    for (int k = 0; k < count; ++k) {
      A value = a.bias[(d * slots + first + k) * a.hidden + u] + gate[(first + k) * a.hidden];
      if (!cut) value += product[k * a.hidden];
      slot[first + k] = V(value);
    }
    const State<V> previous = {V(cut ? A(0) : widen(a.h_in[state])), V(A(0))};
    with_clip(a.clip,
              [&](const auto& clip) { a.operand[state] = narrow<T>(Cell::operand(slot, previous, clip).value); });
    FUSEDRNN_UNROLL
    for (int k = 0; k < count; ++k) gate[(first + k) * a.hidden] = slot[first + k].value;
  }
};

// The rest of the steps [begin, end), one after the other: one step when a layer runs, a segment when it is made again.
template <class Cell, class T>
struct ForwardStep {
  using A = Accumulator<T>;
  using V = Scalar<A>;
  StepArrays<T> a;
  Index begin, end;

  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index b, Index u) const {
    for (Index s = begin; s < end; ++s) step(d, s, b, u);
  }

  FUSEDRNN_HOST_DEVICE void step(Index d, Index s, Index b, Index u) const {
    constexpr CellTraits traits = Cell::traits;
    constexpr int slots = traits.slots, unit_rows = traits.per_unit.rows, last = traits.phases - 1;
    constexpr int done_first = traits.recurrent[0].first, done_count = last == 0 ? 0 : traits.recurrent[0].count;
    constexpr int x_first = traits.input.first, x_count = traits.input.count;
    constexpr int h_first = traits.recurrent[last].first, h_count = traits.recurrent[last].count;
    const Index n = a.steps.length(b), t = a.steps.time(d, s, n), state = (d * a.steps.rows + b) * a.hidden + u;
    T* const y = a.y.data ? a.y.at(t, b) + d * a.hidden + u : nullptr;
    // 1. Past its length a row puts out zeros and keeps its state.
    if (s >= n) {
      if (y) *y = narrow<T>(A(0));
      return;
    }
    // 2. Slots: bias, then x's part, then h's, which a cut link takes away; slots of an earlier phase are done.
    const bool cut = a.steps.cut(d, s, b, n);
    A* const gate = a.gates + a.gate_at(d, s, b, slots, u);
    const A* const product = a.products + a.row_of(d, s, b, a.product_rows) * a.columns * a.hidden + u;
    V slot[slots], weight[unit_rows + 1];
    FUSEDRNN_UNROLL
    for (int k = 0; k < slots; ++k) {
      if (within(done_first, done_count, k)) {
        slot[k] = V(gate[k * a.hidden]);
        continue;
      }
      A value = a.bias[(d * slots + k) * a.hidden + u];
      if (within(x_first, x_count, k)) value += gate[k * a.hidden];
      if (within(h_first, h_count, k) && !cut) value += product[(k - h_first) * a.hidden];
      slot[k] = V(value);
    }
    FUSEDRNN_UNROLL
    for (int k = 0; k < unit_rows; ++k) weight[k] = V(a.per_unit[(d * unit_rows + k) * a.hidden + u]);
    // 3. The cell.
    State<V> previous = {V(A(0)), V(A(0))}, next = previous;
    if (!cut) {
      previous.h = V(widen(a.h_in[a.row_of(d, s, b, a.h_rows) * a.hidden + u]));
      if (traits.states == 2) previous.c = V(a.c[state]);
    }
    with_clip(a.clip, [&](const auto& clip) { Cell::forward(slot, previous, weight, next, clip); });
    // 4. State, output, and what the tape keeps.
    const T h = narrow<T>(next.h.value);
    if (a.h_out) a.h_out[state] = h;
    if (y) *y = h;
    if (traits.states == 2) {
      a.c[state] = next.c.value;
      if (a.cells) a.cells[a.cell_at(d, s, b, u)] = next.c.value;
    }
    if (a.keep) {
      FUSEDRNN_UNROLL
      for (int k = 0; k < slots; ++k) gate[k * a.hidden] = slot[k].value;
    }
  }
};

}  // namespace
}  // namespace fusedrnn
