// Norms of the gradients of all states. After the steps of a chunk its gate gradients are there. One product with
// weight_hh gives what each step hands to the one before it; from that, and from the tape, the gradients of the states
// are made once more, step by step, as the pass made them. So neither the steps' kernels nor the block programs know of
// norms.
#pragma once
#include <cmath>

#include "cuda/runtime/reduce.h"
#include "cuda/stepwise/mask.h"

namespace fusedrnn {
namespace {

template <class T>
struct Measured {
  using A = Accumulator<T>;
  const A *products, *doperands;  // (D, capacity, H): gate gradients of the chunk times weight_hh, of each phase
  Index last;                     // the chunk's end
  SequenceOf<const T> dy;         // data null: zeros
  bool dy_by_step;                // with a mask: dy has rows for steps that run, and no others
  MaskLists lists;                // extents null: there is no mask
  const bool* resets;             // (T, B), or null
  A *dh, *dc;                     // (D, B, H): what arrives from behind the chunk; becomes what arrives before it
  A *of_h, *of_c;                 // (D, T, B, H), written: the states' gradients in time; of_c null: there is no c
};

// The chunk's steps, and with a mask the skipped ones after each: with the first step those before it, too.
template <class Cell, class T>
struct MeasureStates {
  using A = Accumulator<T>;
  using V = Scalar<A>;
  BackwardArrays<T> a;
  Measured<T> m;

  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index b, Index u) const {
    const Index n = a.steps.length(b), extent = m.lists.extents ? m.lists.extents[b] : n;
    const Index state = (d * a.steps.rows + b) * a.hidden + u;
    if (a.first > 0 && a.first >= n) return;
    const Index end = a.first > 0 ? position(d, a.first, b, n, extent) : 0;
    State<V> gradient = {V(m.dh[state]), V(m.dc ? m.dc[state] : A(0))};
    Index s = smaller(m.last, n);
    for (Index i = m.last < n ? position(d, m.last, b, n, extent) : extent; i-- > end;) {
      const Index t = a.steps.reverse(d) ? extent - 1 - i : i;
      // Whether a reset parts the state from what follows.
      if (m.resets && i + 1 < extent && m.resets[(a.steps.reverse(d) ? t : t + 1) * a.steps.rows + b])
        gradient = {V(A(0)), V(A(0))};
      const bool runs = s > 0 && position(d, s - 1, b, n, extent) == i;
      if (runs) --s;
      if (m.dy.data && (runs || !m.dy_by_step)) {
        const Index row = m.dy_by_step ? a.steps.time(d, s, n) : t;
        gradient.h += V(widen(m.dy.at(row, b)[d * a.hidden + u]));
      }
      State<V> before = gradient;
      if (runs) before = differentiate(d, s, b, u, n, gradient);
      const Index at = ((d * a.steps.steps + t) * a.steps.rows + b) * a.hidden + u;
      m.of_h[at] = gradient.h.value;
      if (m.of_c) m.of_c[at] = gradient.c.value;
      gradient = before;
    }
    m.dh[state] = gradient.h.value;
    if (m.dc) m.dc[state] = gradient.c.value;
  }

 private:
  // How many times lie before a step, in its direction.
  FUSEDRNN_HOST_DEVICE Index position(Index d, Index s, Index b, Index n, Index extent) const {
    if (!m.lists.extents) return s;
    const Index t = m.lists.times[a.steps.time(d, s, n) * a.steps.rows + b];
    return a.steps.reverse(d) ? extent - 1 - t : t;
  }

  // The gradient of the state before step s, whether or not a reset cuts it off; that of c_t is made complete.
  FUSEDRNN_HOST_DEVICE State<V> differentiate(Index d, Index s, Index b, Index u, Index n, State<V>& gradient) const {
    constexpr int slots = Cell::traits.slots, unit_rows = Cell::traits.per_unit.rows;
    const Index row = a.row(d, s, b);
    const A* const gate = a.gates + a.kept_row(d, s, b) * slots * a.hidden + u;
    V slot[slots], dslot[slots], weight[unit_rows + 1], c(A(0));
    FUSEDRNN_UNROLL
    for (int k = 0; k < slots; ++k) slot[k] = V(gate[k * a.hidden]);
    FUSEDRNN_UNROLL
    for (int k = 0; k < unit_rows; ++k) weight[k] = V(a.per_unit[(d * unit_rows + k) * a.hidden + u]);
    State<V> previous = {V(widen(a.h_previous[row * a.hidden + u])), V(A(0))}, before = {V(A(0)), V(A(0))};
    if (Cell::traits.states == 2) {
      c = V(a.cells[a.kept_row(d, s, b) * a.hidden + u]);
      previous.c = V(a.previous_c(d, s, b, n, u));
    }
    with_clip(a.clip, [&](const auto& clip) {
      Cell::backward(slot, previous, c, gradient, weight, dslot, before, clip);
      if constexpr (Cell::traits.phases == 2)
        Cell::backward_operand(slot, previous, V(m.doperands[row * a.hidden + u]), dslot, before, clip);
    });
    before.h += V(m.products[row * a.hidden + u]);
    return before;
  }
};

// The norm of each row of (D, T, B, H); 0 past a length. A block has a row.
template <class T>
struct NormOfRow {
  using A = Accumulator<T>;
  const A* from;
  Index steps, rows, hidden;
  const std::int64_t* lengths;  // (B,) or null
  T* to;
  Index to_direction, to_time, to_row;

  static constexpr int kThreads = 64;
  static constexpr std::size_t kSharedBytes = (2 * kThreads + 1) * sizeof(double);

  FUSEDRNN_DEVICE void operator()(Block& block, Index row) const {
    const Index d = row / rows / steps, t = row / rows % steps, b = row % rows;
    T& norm = to[d * to_direction + t * to_time + b * to_row];
    const bool empty = lengths && t >= lengths[b];
    double* const sums = static_cast<double*>(block.shared());
    double* const largest = sums + kThreads;
    double& scale = largest[kThreads];
    find_scale(block, empty ? nullptr : from + row * hidden, largest, scale);
    block.each([&](int thread) {
      sums[thread] = 0;
      for (Index u = thread; !empty && u < hidden; u += kThreads) {
        const double value = scale * static_cast<double>(from[row * hidden + u]);
        sums[thread] += value * value;
      }
    });
    reduce(block, sums, Sum<double>());
    block.each([&](int thread) {
      if (thread == 0) norm = narrow<T>(static_cast<A>(std::sqrt(sums[0]) / scale));
    });
  }

 private:
  // The power of two by which values are multiplied: 1, but where squares of doubles might leave their range.
  FUSEDRNN_DEVICE void find_scale(Block& block, const A* values, double* largest, double& scale) const {
    constexpr bool is_double = sizeof(A) == sizeof(double);
    if (is_double) {
      block.each([&](int thread) {
        largest[thread] = 0;
        for (Index u = thread; values && u < hidden; u += kThreads)
          largest[thread] = Largest<double>()(largest[thread], std::fabs(static_cast<double>(values[u])));
      });
      reduce(block, largest, Largest<double>());
    }
    block.each([&](int thread) {
      if (thread > 0) return;
      const double most = is_double ? largest[0] : 1;
      const bool in_range = most == 0 || (most > 0x1p-450 && most < 0x1p500) || most > 0x1.fffffffffffffp1023;
      scale = in_range ? 1 : most < 1 ? 0x1p900 : 0x1p-600;
    });
  }
};

}  // namespace
}  // namespace fusedrnn
