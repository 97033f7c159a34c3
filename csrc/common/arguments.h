// The plain structs of pointers, strides and sizes that cross from the layer code to the kernels.
// No struct owns memory; a pointer's comment says its shape, and who writes it. Of their two types, T is the one of the
// caller's arrays and A, its accumulator, the one of sums, gates, c and the tape.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cells/traits.h"
#include "common/attributes.h"
#include "common/number.h"

namespace fusedrnn {

struct Worker;

using Index = std::ptrdiff_t;

// Units are handled in blocks of 16 on every ISA, so that no result depends on the width of a register.
constexpr Index kBlock = 16;
FUSEDRNN_INLINE constexpr Index blocks_of(Index units) { return (units + kBlock - 1) / kBlock; }
FUSEDRNN_INLINE constexpr Index padded(Index units) { return blocks_of(units) * kBlock; }
FUSEDRNN_INLINE constexpr Index smaller(Index a, Index b) { return a < b ? a : b; }
FUSEDRNN_INLINE constexpr Index larger(Index a, Index b) { return a > b ? a : b; }

// Rows of a sequence array: address(t, b) = data + t * time + b * row, strides in elements, units contiguous. Where the
// rows of a step follow those of the step before without padding, `starts` says how many came before.
template <class Real>
struct Sequence {
  Real* data = nullptr;
  Index time = 0;
  Index row = 0;
  const Index* starts = nullptr;  // (T,) or null
  FUSEDRNN_INLINE Real* at(Index t, Index b) const {
    return data + (starts ? (starts[t] + b) * row : t * time + b * row);
  }
};

// Rows of a state array (B, H): address(b) = data + b * row. A null pointer reads as zeros.
template <class Real>
struct StateRows {
  Real* data = nullptr;
  Index row = 0;
  FUSEDRNN_INLINE Real* at(Index b) const { return data + b * row; }
};

// A bool for every time and row, at data[t * time + b * row] of the caller's; null data: absent. Read as bytes: NumPy
// takes any byte but 0 as true, and a C++ bool of another value than 0 and 1 is undefined.
struct Flags {
  const unsigned char* data = nullptr;
  Index time = 0, row = 0;
  FUSEDRNN_INLINE bool at(Index t, Index b) const { return data[t * time + b * row] != 0; }
};

// Which rows run at which step. Rows are sorted by the number of steps they run, most first, and addressed by their
// position in that order, so the rows running at step s are the positions [0, active[s]). A row of n steps runs them at
// its times 0 .. n - 1, or, with a mask, at the times that it keeps. Step s is at the s-th of them going forward and at
// the (n - 1 - s)-th going backward: padded, ragged, masked and reset batches are one code.
struct Schedule {
  Index steps = 0;
  Index rows = 0;
  const Index* active = nullptr;  // (steps,) rows running at a step, never growing
  const Index* offset = nullptr;  // (steps + 1,) packed index of a step's first row
  const Index* row = nullptr;     // (rows,) position -> row of the batch
  const Index* length = nullptr;  // (rows,) position -> steps it runs
  const bool* cuts = nullptr;  // null, or (steps + 1, rows): whether a reset cuts off the k-th time from the one before
  const Index* times = nullptr;    // null without a mask, or (rows, steps) position -> the times it keeps, ascending
  const Index* extent = nullptr;   // with a mask: (rows,) position -> its length, skipped steps included
  const Index* repeats = nullptr;  // with a mask: (rows, steps + 1) position -> skipped steps through which a state
                                   // lasts; number 0 is the initial state, number s + 1 the one after step s
  const bool* resets = nullptr;    // with a mask: null, or (T, rows) time, position -> the caller's reset
  bool reverse = false;

  FUSEDRNN_INLINE Index time(Index step, Index position) const {
    const Index k = reverse ? length[position] - 1 - step : step;
    return times ? times[position * steps + k] : k;
  }
  // Whether the row enters the step from zero instead of from its previous state.
  FUSEDRNN_INLINE bool cut(Index step, Index position) const {
    return cuts && cuts[(reverse ? length[position] - step : step) * rows + position];
  }

  // The rest with a mask only. How long a state lasts, and the i-th of the skipped steps that follow it.
  FUSEDRNN_INLINE Index repeats_of(Index state, Index position) const {
    return repeats[position * (steps + 1) + state];
  }
  FUSEDRNN_INLINE Index skipped_time(Index state, Index position, Index i) const {
    const Index first = state > 0 ? time(state - 1, position) + (reverse ? -1 : 1) : reverse ? extent[position] - 1 : 0;
    return reverse ? first - i : first + i;
  }
  // Whether a reset cuts off the state after the row's last step: its final state is zero.
  FUSEDRNN_INLINE bool cut_at_end(Index position) const {
    const Index state = length[position], end = skipped_time(state, position, repeats_of(state, position));
    return end >= 0 && end < extent[position];
  }
  // How many skipped steps lie between a state and what follows: the next step that runs, or the end.
  FUSEDRNN_INLINE Index skipped_after(Index state, Index position) const {
    const Index first = skipped_time(state, position, 0);
    const Index end = state < length[position] ? time(state, position) : reverse ? -1 : extent[position];
    return reverse ? first - end : end - first;
  }
  // Whether a reset cuts a time, or the end, off from the time run before it.
  FUSEDRNN_INLINE bool reset_before(Index time, Index position) const {
    if (reverse) return time >= 0 && time + 1 < extent[position] && resets[(time + 1) * rows + position];
    return time < extent[position] && resets[time * rows + position];
  }
};

// One direction of one layer's parameters or their gradients, as the caller holds them; every array C-contiguous, null
// where there is none or nobody wants it.
template <class Item>
struct ParameterArrays {
  Item* weight_ih = nullptr;  // (gates * H, I)
  Item* weight_hh = nullptr;  // (gates * H, H)
  Item* bias_ih = nullptr;    // (gates * H,)
  Item* bias_hh = nullptr;    // (gates * H,)
  Item* per_unit = nullptr;   // (rows, H)

  Item*& operator[](Role role) {
    Item** const arrays[] = {&weight_ih, &weight_hh, &bias_ih, &bias_hh, &per_unit};
    return *arrays[static_cast<int>(role)];
  }
};
template <class T>
using Weights = ParameterArrays<const T>;
template <class A>
using WeightGradients = ParameterArrays<A>;

// Numbers of 16 bits are multiplied in pairs, and packed in groups of so many along the inner dimension, the last one
// filled up with zeros: what one tile of AMX holds.
constexpr Index kPairGroup = 32;
// Steps of the inner dimension that such a product takes at a time, and elements of so many steps of 64 columns.
constexpr Index kPairSteps = 1024, kReadyElements = 64 * kPairSteps;
// The inner dimension of packed weights of T.
template <class T>
FUSEDRNN_INLINE constexpr Index packed_inner(Index inner) {
  return sizeof(T) > 2 ? inner : (inner + kPairGroup - 1) / kPairGroup * kPairGroup;
}

// One direction of one layer's parameters in the order in which the forward kernels read them, in blocks of 16 units;
// on every instruction set the same. Of 16 bits, two steps of the inner dimension I or H are interleaved: (.., I / 2,
// 16, 2).
template <class Weight, class Sum>
struct PackedWeights {
  Weight* weight_ih = nullptr;  // (blocks, input.count, I, 16)
  Weight* weight_hh = nullptr;  // of each phase in turn: (blocks, its recurrent count, H, 16)
  Sum* bias = nullptr;          // (blocks, slots, 16): the sum of what a slot is fed
  Sum* per_unit = nullptr;      // (blocks, rows of it, 16)
  FUSEDRNN_INLINE PackedWeights<const Weight, const Sum> read_only() const {
    return {weight_ih, weight_hh, bias, per_unit};
  }
};
template <class T>
using Packed = PackedWeights<const T, const Accumulator<T>>;

// A contiguous part of [0, count).
struct Range {
  Index first, last;
};

// A sequence array (T, B, ...) on a device, of a type that its call tells; strides in elements. Null data: absent.
struct SequenceView {
  void* data = nullptr;
  Index time = 0, row = 0;
};

// Where gates and cell states live: unit block j, packed row r at data + (j * rows + r - first) * width.
template <class Real>
struct Blocked {
  Real* data = nullptr;
  Index rows = 0;   // capacity of a unit block
  Index width = 0;  // elements a row holds in one unit block
  FUSEDRNN_INLINE Real* at(Index block, Index row) const { return data + (block * rows + row) * width; }
  FUSEDRNN_INLINE Index block_stride() const { return rows * width; }
};

// A step as whoever makes or takes its late input sees it. Rows are addressed by position.
template <class T>
struct LateStep {
  using A = Accumulator<T>;
  Index step;
  StateRows<const A> h;                 // forward: before the step
  StateRows<const A> gradient;          // backward: of the late input
  StateRows<A> dh;                      // backward, added to: of the h before the step; null where nobody wants it
  Range blocks;                         // of units, which this thread adds to in dh
  Blocked<T> h_panel;                   // at a chunk's end: h before the step of the chunk's rows
  Index chunk_row = 0, chunk_rows = 0;  // packed rows of the chunk
  bool adding = false;                  // at a chunk's end: whether gradients of weights have begun
};

// The last columns of a direction's input where they are known only once a step begins, as an attention's context is.
// Every thread of the direction calls the functions; threads of the same rows meet at their ends.
template <class T>
struct LateInput {
  Index size = 0;    // columns; 0: there are none
  Sequence<T> rows;  // (T, B, size)
  const void* owner = nullptr;
  void (*make)(const void* owner, const LateStep<T>& step, Worker& worker) = nullptr;       // writes `rows`
  void (*take)(const void* owner, const LateStep<T>& step, Worker& worker) = nullptr;       // backward, after the step
  void (*end_chunk)(const void* owner, const LateStep<T>& step, Worker& worker) = nullptr;  // backward
};

// One direction of one layer going forward.
template <class T>
struct ForwardArguments {
  using A = Accumulator<T>;
  Index input_size, hidden_size;
  Schedule schedule;
  Weights<T> weights;
  Sequence<const T> x;  // (T, B, I)
  Sequence<T> y;        // (T, B, H): written, unless null; zeros past a row's length are the caller's
  StateRows<const T> h0;
  StateRows<const A> c0;
  StateRows<T> hn;   // written, unless null
  StateRows<A> cn;   // written, unless null
  A clip;            // bound on every gate's pre-activation, or 0
  bool training;     // keep activated gates and cell states
  Blocked<A> gates;  // sums, then activated gates: of `chunk_rows` rows, reused, or where `kept` has none of its own
                     // in training of every packed row, or a segment's
  Blocked<Gate<T>> kept;  // training, of 16 bits: what becomes of the gates of every packed row, or a segment's
  Blocked<A> cells;       // training, cells with c: c of the same packed rows
  Index segment = 0;      // recomputing: steps of a segment; else 0
  Blocked<A> entering;  // recomputing, cells with c: c on entering every segment but the first, (segment - 1, position)
  Sequence<const T> known_y;  // replaying a segment: y, which holds the h it starts from
  Index chunk_rows;           // most packed rows of a chunk of time
  Packed<T> packed;
  LateInput<T> late;  // its size is part of input_size, not of x
  // Workspace, shared by the threads of the direction.
  PackedWeights<T, A> fresh;  // `packed`, to be written from `weights` first; null: it was before
  Blocked<A> carry;           // c by position
  const void** pointers;      // (threads, chunk_rows)
  // Left operands, of the micro-kernel's type, which is A or T.
  void* h;        // (2, rows, padded H): states before and after a step, by position
  void* operand;  // (rows, padded H): a second phase's
  // Where left operands are wider than T, else null.
  void* x_rows;  // (chunk_rows, I made even)
  A* ready;      // (threads, kReadyElements)

  // Row of `entering` for the segment that begins at a step.
  FUSEDRNN_INLINE Index entering_row(Index step, Index position) const {
    return (step / segment - 1) * schedule.rows + position;
  }
};

// One direction of one layer going backward.
template <class T>
struct BackwardArguments {
  using A = Accumulator<T>;
  Index input_size, hidden_size;
  Schedule schedule;
  Weights<T> weights;
  Sequence<const T> x, y;
  Sequence<const T> dy;  // data null: zeros
  Sequence<T> dx;        // written, unless null; zeros past a row's length are the caller's
  StateRows<const T> h0, dhn;
  StateRows<const A> c0, dcn;
  StateRows<T> dh0;              // written, unless null
  StateRows<A> dc0;              // written, unless null
  A clip;                        // as it was forward
  WeightGradients<A> gradients;  // written where any row runs, unless null
  bool accumulate;               // added to instead
  // The tape; read only. Recomputing: those of the segment at hand.
  Blocked<const Gate<T>> gates;
  Blocked<const A> cells;
  const ForwardArguments<T>* replay = nullptr;  // recomputing: how a segment's gates and cells are made again
  Index chunk_rows;
  bool direct;        // read the weights where they lie: pays for few rows of one step
  LateInput<T> late;  // its size is part of input_size, not of x and dx
  // (T, B) for each state: 2-norms of its gradients, written within a row's length, unless null; zeros past it are the
  // caller's.
  Sequence<T> norms[kMaxStates];
  // Workspace, shared by the threads of the direction.
  T* packed_ih;  // (blocks(I), inner dimension of blocks * input.count * 16, 16)
  T* packed_hh;  // of each phase in turn: (blocks, inner dimension of blocks * its count * 16, 16)
  A* per_unit;   // blocks * rows of it * 16
  Blocked<void>
      dgates;          // panel_rows rows of gate gradients, left operands, in runs of 16 units: slots * blocks of them
  Blocked<T> x_panel;  // panel_rows rows of x, in blocks of 16 inputs
  Blocked<T> h_panel;  // of the previous h
  Blocked<T> operand_panel;  // cells of two phases: of the second phase's left operand
  // Of 16 bits, for which the panels hold pairs of rows: (.., rows / 2, 16, 2).
  A* ready;                 // (threads, kReadyElements); null where left operands are of T
  Blocked<T> dgate_pairs;   // `dgates` in pairs
  Blocked<T> operand_rows;  // cells of two phases: what becomes operand_panel, row by row
  A* dh;                    // (rows, padded H)
  A* doperand;              // (rows, padded H), cells of two phases
  Blocked<A> carry;         // dc by position
  A* dlate;                 // (rows, columns of the blocks from that of the first late column on), with a late input
  // With norms, for each state: chunk_rows rows of its gradients; with a mask, where skipped steps have some too, a row
  // for every time and position.
  Blocked<A> measured[kMaxStates];
};

// One step of one direction of one layer; the elements of a row lie next to each other.
template <class T>
struct StepArguments {
  using A = Accumulator<T>;
  Index input_size, hidden_size, rows;
  const A* packed;          // as the cell's pack_step leaves it: for `step`
  Packed<T> panels;         // for `panel_step`
  Weights<T> weights;       // for `direct_step`
  StateRows<const T> x;     // (B, I)
  StateRows<const T> h;     // (B, H): before the step
  StateRows<const A> c;     // (B, H): before the step
  StateRows<T> h_next;      // (B, H): written
  StateRows<A> c_next;      // (B, H): written; may be c
  StateRows<T> y;           // (B, H): h_next once more, or null
  Blocked<A> gates, cells;  // training, `direct_step` alone: the tape; else null
  A clip;                   // bound on every gate's pre-activation, or 0
  bool reversed;            // take the units from the last to the first
  // Workspace of cells of two phases, shared by the threads.
  T* operand;  // (B, padded H): the second phase's left operand
  A* kept;     // (B, slots, padded H): what the first phase leaves of its slots
};

}  // namespace fusedrnn
