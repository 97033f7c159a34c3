// Masks of skipped steps. The caller's sequences are moved together: "by step" an array has at (k, b) what belongs to
// the k-th step that row b keeps. The drivers run those as sequences without a mask, with the number of kept steps for
// a length, and what comes out is moved back. So no kernel of a step knows of masks.
#pragma once
#include "cuda/stepwise/backward_step.h"

namespace fusedrnn {
namespace {

// What a mask comes to, by directions where D stands; device memory that the tape keeps.
struct MaskLists {
  Index steps, rows;
  std::int64_t* extents = nullptr;  // (B,): lengths, skipped steps included
  std::int64_t* counts = nullptr;   // (B,): steps that a row keeps
  bool* cuts = nullptr;          // (T, B) by step: whether a reset cuts it off from the one before; null without resets
  bool* resets = nullptr;        // (T, B) in time, as they were given; null without
  Index* times = nullptr;        // (T, B) by step
  Index* states = nullptr;       // (D, T, B) in time: the state whose h is put out: 0 the initial one, k + 1 that after
                                 // step k, -1 none, as behind a cut and past a length
  bool* lost_initial = nullptr;  // (D, B): whether a reset cuts off the initial state before any step sees it
  bool* lost_final = nullptr;    // (D, B): or the last step's state before the end

  FUSEDRNN_INLINE Index state(Index d, Index t, Index b) const { return states[(d * steps + t) * rows + b]; }
  // The step at a time, or -1 where it is skipped.
  FUSEDRNN_INLINE Index step_at(Index t, Index b) const {
    const Index k = state(0, t, b) - 1;
    return k >= 0 && times[k * rows + b] == t ? k : -1;
  }
};

// Makes the lists, a thread for each row of the batch.
struct ListSteps {
  MaskLists lists;
  const bool* mask;
  Index time, row;
  const bool* reset;  // null: none
  Index reset_time, reset_row;
  const std::int64_t* lengths;  // null: all steps
  Index directions;
  bool reversed;

  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index b) const {
    for (Index t = 0; lists.resets && t < lists.steps; ++t) lists.resets[t * lists.rows + b] = cut(t, b);
    const std::int64_t given = lengths ? lengths[b] : lists.steps;
    const Index n = given < 0 ? 0 : smaller(given, lists.steps), count = list_times(b, n);
    for (Index d = 0; d < directions; ++d) list_states(d, b, n, count);
  }

 private:
  FUSEDRNN_HOST_DEVICE bool cut(Index t, Index b) const { return reset && reset[t * reset_time + b * reset_row]; }

  FUSEDRNN_HOST_DEVICE Index list_times(Index b, Index n) const {
    Index count = 0;
    bool off = false;
    for (Index t = 0; t < n; ++t) {
      off |= cut(t, b);
      if (!mask[t * time + b * row]) continue;
      lists.times[count * lists.rows + b] = t;
      if (lists.cuts) lists.cuts[count * lists.rows + b] = off;
      ++count;
      off = false;
    }
    for (Index k = count; k < lists.steps; ++k) {
      lists.times[k * lists.rows + b] = 0;
      if (lists.cuts) lists.cuts[k * lists.rows + b] = false;
    }
    lists.extents[b] = n;
    lists.counts[b] = count;
    return count;
  }

  FUSEDRNN_HOST_DEVICE void list_states(Index d, Index b, Index n, Index count) const {
    const bool reverse = reversed || d == 1;
    Index state = 0, done = 0;
    bool lost = false;
    for (Index i = 0; i < lists.steps; ++i) {
      const Index t = reverse && i < n ? n - 1 - i : i;
      if (i < n && !(reverse && i == 0) && cut(reverse ? t + 1 : t, b)) state = -1;
      if (i < n && mask[t * time + b * row]) {
        lost |= done == 0 && state < 0;
        state = (reverse ? count - 1 - done : done) + 1;
        ++done;
      }
      lists.states[(d * lists.steps + t) * lists.rows + b] = i < n ? state : -1;
    }
    lists.lost_initial[d * lists.rows + b] = lost;
    lists.lost_final[d * lists.rows + b] = state < 0;
  }
};

// A sequence by step; zero past the last one.
template <class T>
struct MoveTogether {
  MaskLists lists;
  SequenceOf<const T> from;
  T* to;
  Index width;
  FUSEDRNN_HOST_DEVICE void operator()(Index k, Index b, Index c) const {
    const Index i = k * lists.rows + b;
    to[i * width + c] = k < lists.counts[b] ? from.at(lists.times[i], b)[c] : narrow<T>(Accumulator<T>(0));
  }
};

// Gradients of outputs by step: those of all times at which its h is put out, added up and rounded once.
template <class T>
struct MoveGradients {
  using A = Accumulator<T>;
  MaskLists lists;
  SequenceOf<const T> from;
  T* to;
  Index hidden, width;
  bool reversed;

  // From time t on, as long as the state is that one.
  FUSEDRNN_HOST_DEVICE static A sum(const MaskLists& lists, const SequenceOf<const T>& from, Index d, Index b,
                                    Index unit, Index state, Index t, bool reverse) {
    A value = 0;
    for (; t >= 0 && t < lists.steps && lists.state(d, t, b) == state; t += reverse ? -1 : 1)
      value += widen(from.at(t, b)[unit]);
    return value;
  }

  FUSEDRNN_HOST_DEVICE void operator()(Index k, Index b, Index unit) const {
    const Index i = k * lists.rows + b, d = unit / hidden;
    const bool runs = k < lists.counts[b];
    to[i * width + unit] =
        narrow<T>(runs ? sum(lists, from, d, b, unit, k + 1, lists.times[i], reversed || d == 1) : A(0));
  }
};

// Outputs in time: at every time the h of its state.
template <class T>
struct SpreadOutputs {
  MaskLists lists;
  const T *from, *initial;  // (T, B, width) by step; (D, B, H)
  SequenceOf<T> to;
  Index hidden, width;
  FUSEDRNN_HOST_DEVICE void operator()(Index t, Index b, Index unit) const {
    const Index d = unit / hidden, state = lists.state(d, t, b);
    T& value = to.at(t, b)[unit];
    if (state < 0)
      value = narrow<T>(Accumulator<T>(0));
    else if (state == 0)
      value = initial[(d * lists.rows + b) * hidden + unit % hidden];
    else
      value = from[((state - 1) * lists.rows + b) * width + unit];
  }
};

// Gradients of x in time, zero where a step is skipped.
template <class T>
struct SpreadGradients {
  MaskLists lists;
  const T* from;  // (T, B, width) by step
  SequenceOf<T> to;
  Index width;
  FUSEDRNN_HOST_DEVICE void operator()(Index t, Index b, Index c) const {
    const Index k = lists.step_at(t, b);
    to.at(t, b)[c] = k < 0 ? narrow<T>(Accumulator<T>(0)) : from[(k * lists.rows + b) * width + c];
  }
};

// Zeros for the rows of a state array, or its gradient, that a reset cuts off.
template <class T>
struct ClearLost {
  const bool* lost;  // (D, B)
  Index rows;
  T* to;
  Index to_outer, to_row;
  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index b, Index u) const {
    if (lost[d * rows + b]) to[d * to_outer + b * to_row + u] = narrow<T>(Accumulator<T>(0));
  }
};

// dE/dh_0, that of the outputs which repeat it included.
template <class T>
struct StoreMaskedGradient {
  using A = Accumulator<T>;
  MaskLists lists;
  BackwardArrays<T> a;
  bool complete;           // dh is all of it; else the products of the first step have still to be added
  SequenceOf<const T> dy;  // in time, or data null: zeros
  T* to;
  Index to_outer, to_row;
  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index b, Index u) const {
    const Index own = d * lists.rows + b, n = a.steps.length(b);
    A value = 0;
    if (!lists.lost_initial[own]) value = complete ? a.dh[own * a.hidden + u] : a.incoming(d, -1, b, n, u);
    if (dy.data) {
      const bool reverse = a.steps.reverse(d);
      const Index first = reverse ? lists.extents[b] - 1 : 0;
      value += MoveGradients<T>::sum(lists, dy, d, b, d * a.hidden + u, 0, first, reverse);
    }
    to[d * to_outer + b * to_row + u] = narrow<T>(value);
  }
};

}  // namespace
}  // namespace fusedrnn
