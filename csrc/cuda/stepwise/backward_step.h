// Element-wise parts of a backward step, for every cell; arrays as in forward_step.h.
#pragma once
#include "cuda/stepwise/forward_step.h"

namespace fusedrnn {
namespace {

template <class T>
struct BackwardArrays {
  using A = Accumulator<T>;
  Steps steps;
  Index hidden;
  A clip;                 // bound on every gate's pre-activation, or 0
  Index first, capacity;  // the chunk's first step, and its rows by direction
  const A* per_unit;      // (D, rows, H)
  const A* gates;         // (D, gate_rows, slots, H), activated, step order from `gates_first` on
  const A* cells;         // (D, gate_rows, H), the same rows
  Index gates_first, gate_rows;
  const A* c0;        // (D, B, H) or null: zeros
  const A* entering;  // (D, entering_rows, H): c on entering each segment but the first, where `cells` begin with one
  Index segment, entering_rows;
  const T* h_previous;  // (D, capacity, H): h before each step, 0 where a link is cut
  SequenceOf<const T> dy;
  T* dgates;          // (D, capacity, slots, H)
  A* dh;              // (D, B, H): dE/dh past the products
  const A* products;  // (D, B, H): the later step's part of dE/dh through weight_hh
  A* dc;              // (D, B, H)
  const A* doperand;  // (D, B, H)
  T* operand;         // (D, capacity, H)

  FUSEDRNN_INLINE Index row(Index d, Index s, Index b) const { return d * capacity + (s - first) * steps.rows + b; }
  FUSEDRNN_INLINE Index kept_row(Index d, Index s, Index b) const {
    return d * gate_rows + (s - gates_first) * steps.rows + b;
  }
  // dE/dh after step s: from the final state for the last step of a row and before it ran, else from the step after it.
  FUSEDRNN_INLINE A incoming(Index d, Index s, Index b, Index n, Index u) const {
    const Index state = (d * steps.rows + b) * hidden + u;
    if (s + 1 >= n) return dh[state];
    return steps.cut(d, s + 1, b, n) ? A(0) : dh[state] + products[state];
  }
  FUSEDRNN_INLINE A previous_c(Index d, Index s, Index b, Index n, Index u) const {
    const A* const before = steps.cut(d, s, b, n) ? nullptr : c_before(d, s);
    return before ? before[b * hidden + u] : A(0);
  }
  // c before step s, (B, H), or null: zeros.
  FUSEDRNN_INLINE const A* c_before(Index d, Index s) const {
    if (s == 0) return c0 ? c0 + d * steps.rows * hidden : nullptr;
    if (s > gates_first) return cells + kept_row(d, s - 1, 0) * hidden;
    return entering + (d * entering_rows + (s / segment - 1) * steps.rows) * hidden;
  }
};

// The cell's equations: gate gradients, and those of the previous state that pass no product.
template <class Cell, class T>
struct BackwardStep {
  using A = Accumulator<T>;
  using V = Scalar<A>;
  BackwardArrays<T> a;
  Index s;

  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index b, Index u) const {
    constexpr CellTraits traits = Cell::traits;
    constexpr int slots = traits.slots, unit_rows = traits.per_unit.rows;
    const Index n = a.steps.length(b), row = a.row(d, s, b), state = (d * a.steps.rows + b) * a.hidden + u;
    T* const dgate = a.dgates + row * slots * a.hidden + u;
    // 1. Past its length a row has no gradient, and hands that of its state on.
    if (s >= n) {
      FUSEDRNN_UNROLL
      for (int k = 0; k < slots; ++k) dgate[k * a.hidden] = narrow<T>(A(0));
      return;
    }
    // 2. What the tape knows of the step, and the gradient that arrives.
    const A* const gate = a.gates + a.kept_row(d, s, b) * slots * a.hidden + u;
    V slot[slots], dslot[slots], weight[unit_rows + 1], c(A(0));
    FUSEDRNN_UNROLL
    for (int k = 0; k < slots; ++k) slot[k] = V(gate[k * a.hidden]);
    FUSEDRNN_UNROLL
    for (int k = 0; k < unit_rows; ++k) weight[k] = V(a.per_unit[(d * unit_rows + k) * a.hidden + u]);
    State<V> previous = {V(widen(a.h_previous[row * a.hidden + u])), V(A(0))}, grad = {V(A(0)), V(A(0))};
    State<V> dprevious = grad;
    grad.h = V(a.incoming(d, s, b, n, u));
    if (a.dy.data) grad.h += V(widen(a.dy.at(a.steps.time(d, s, n), b)[d * a.hidden + u]));
    if (traits.states == 2) {
      c = V(a.cells[a.kept_row(d, s, b) * a.hidden + u]);
      previous.c = V(a.previous_c(d, s, b, n, u));
      grad.c = V(a.dc[state]);
    }
    // 3. The cell.
    with_clip(a.clip,
              [&](const auto& clip) { Cell::backward(slot, previous, c, grad, weight, dslot, dprevious, clip); });
    FUSEDRNN_UNROLL
    for (int k = 0; k < slots; ++k) dgate[k * a.hidden] = narrow<T>(dslot[k].value);
    a.dh[state] = dprevious.h.value;
    if (traits.states == 2) a.dc[state] = a.steps.cut(d, s, b, n) ? A(0) : dprevious.c.value;
  }
};

// Between the products of a cell of two phases.
template <class Cell, class T>
struct BackwardOperand {
  using A = Accumulator<T>;
  using V = Scalar<A>;
  BackwardArrays<T> a;
  Index s;

  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index b, Index u) const {
    constexpr int slots = Cell::traits.slots;
    const Index row = a.row(d, s, b), state = (d * a.steps.rows + b) * a.hidden + u;
    T& operand = a.operand[row * a.hidden + u];
    if (s >= a.steps.length(b)) {
      operand = narrow<T>(A(0));
      return;
    }
    const A* const gate = a.gates + a.kept_row(d, s, b) * slots * a.hidden + u;
    T* const dgate = a.dgates + row * slots * a.hidden + u;
    V slot[slots], dslot[slots];
    FUSEDRNN_UNROLL
    for (int k = 0; k < slots; ++k) {
      slot[k] = V(gate[k * a.hidden]);
      dslot[k] = V(widen(dgate[k * a.hidden]));
    }
    const State<V> previous = {V(widen(a.h_previous[row * a.hidden + u])), V(A(0))};
    State<V> dprevious = {V(a.dh[state]), V(A(0))};
    with_clip(a.clip, [&](const auto& clip) {
      Cell::backward_operand(slot, previous, V(a.doperand[state]), dslot, dprevious, clip);
    });
    FUSEDRNN_UNROLL
    for (int k = 0; k < slots; ++k) dgate[k * a.hidden] = narrow<T>(dslot[k].value);
    a.dh[state] = dprevious.h.value;
    operand = narrow<T>(Cell::recomputed_operand(slot, previous).value);
  }
};

// dE/dh_0 to a state array's rows.
template <class T>
struct StoreInitialGradient {
  BackwardArrays<T> a;
  T* to;
  Index to_outer, to_row;
  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index b, Index u) const {
    to[d * to_outer + b * to_row + u] = narrow<T>(a.incoming(d, -1, b, a.steps.length(b), u));
  }
};

// Adds the chunk's part of the gradient of the per-unit parameter to partial sums (D, kParts, rows, H).
template <class Cell, class T>
struct PerUnitPart {
  using A = Accumulator<T>;
  using V = Scalar<A>;
  BackwardArrays<T> a;
  Index rows;  // of the chunk
  A* partial;

  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index part, Index u) const {
    constexpr int slots = Cell::traits.slots, unit_rows = Cell::traits.per_unit.rows;
    A* const target = partial + (d * kParts + part) * unit_rows * a.hidden + u;
    V sum[unit_rows + 1], dslot[slots];
    FUSEDRNN_UNROLL
    for (int k = 0; k < unit_rows; ++k) sum[k] = V(target[k * a.hidden]);
    for (Index r = part_begin(rows, part); r < part_begin(rows, part + 1); ++r) {
      const Index s = a.first + r / a.steps.rows, b = r % a.steps.rows, n = a.steps.length(b);
      if (s >= n) continue;
      const T* const dgate = a.dgates + a.row(d, s, b) * slots * a.hidden + u;
      FUSEDRNN_UNROLL
      for (int k = 0; k < slots; ++k) dslot[k] = V(widen(dgate[k * a.hidden]));
      V before(A(0)), after(A(0));
      if constexpr (Cell::traits.states == 2) {
        before = V(a.previous_c(d, s, b, n, u));
        after = V(a.cells[a.kept_row(d, s, b) * a.hidden + u]);
      }
      Cell::per_unit_gradient(dslot, before, after, sum);
    }
    FUSEDRNN_UNROLL
    for (int k = 0; k < unit_rows; ++k) target[k * a.hidden] = sum[k].value;
  }
};

}  // namespace
}  // namespace fusedrnn
