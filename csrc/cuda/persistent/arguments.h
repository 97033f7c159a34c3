// What a block program is launched with. T is Bfloat16, Float16, or float for tf32. All arrays lie in device memory,
// and nothing here is checked.
//
// "In step order" is an array of the launch's steps, the first at index 0; "in time order" one of all times. Step s of
// a row of length n is time s going forward and n - 1 - s in reverse; steps past n are the time of the same number.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {
namespace persistent {

// What a thread loads at once.
struct alignas(16) Words {
  std::uint32_t word[4];
};

// As that of common/arguments.h, which can also be packed; a thread has no registers to spare for that.
template <class T>
struct Sequence {
  T* data = nullptr;
  Index time = 0, row = 0;
  FUSEDRNN_INLINE T* at(Index t, Index b) const { return data + t * time + b * row; }
};

struct Batch {
  Index rows = 0, hidden_size = 0;
  Index first_step = 0, end_step = 0;     // that the launch runs
  Index total_steps = 0;                  // of the whole sequence
  const std::int64_t* lengths = nullptr;  // (rows,) or null; taken as if clamped to [0, total_steps]
  const bool* reset = nullptr;            // null, or reset(t, b) at reset[t * reset_time + b * reset_row]
  Index reset_time = 0, reset_row = 0;
  bool first_is_reverse = false;  // for a launch of the reverse direction alone

  FUSEDRNN_INLINE int steps() const { return static_cast<int>(end_step - first_step); }
};

// How the blocks share the work and where they meet; launch fills it in from the plan and the workspace.
struct Grid {
  int blocks = 0, slices = 0, slice_rows = 0;
  std::uint32_t* exchange = nullptr;  // (groups, kExchangeBuffers, exchange_stride) words
  Index exchange_stride = 0;
  Words* packed = nullptr;  // (grid, fragments, kThreads): the blocks' weights, in the order of their registers
  float* carry = nullptr;   // (grid, cells of a thread, kCarriedValues, kThreads): from one kernel to the next
};

template <class T>
struct ForwardDirection {
  const T* weight_hh;     // (gates * H, H)
  const float* bias;      // (slots, H): of each slot, the sum of both sides' biases
  Sequence<float> gates;  // (steps, B, slots * H) in step order: x's part of the slots that x feeds; with `keep`
                          // written: all slots, activated
  Sequence<float> cells;  // (steps, B, H) in step order: c, written with `keep` by cells that have one
  Sequence<T> y;          // (T, B, H) in time order: written, 0 past a row's length; or null
  StateRows<const T> h0;  // before the first step; null reads as zeros
  StateRows<const float> c0;
  StateRows<T> hn;  // after the last step: written; may be h0's memory
  StateRows<float> cn;
};

template <class T>
struct ForwardProgramArguments {
  Batch batch;
  Grid grid;
  bool keep;
  ForwardDirection<T> direction[2];
};

template <class T>
struct BackwardDirection {
  const T* weight_hh;           // (gates * H, H)
  Sequence<const float> gates;  // as the forward pass kept them
  Sequence<const float> cells;
  StateRows<const float> c0;  // c before the first step; null reads as zeros
  Sequence<const T>
      h_previous;           // (steps, B, H) in step order: h before each step, 0 where cut; cells without c read it
  Sequence<const T> dy;     // (T, B, H) in time order, or null: zeros
  Sequence<T> dgates;       // (steps, B, slots * H) in step order: written, 0 past a row's length
  StateRows<float> dh, dc;  // of the state after the last step; overwritten by that of the one before the first
};

template <class T>
struct BackwardProgramArguments {
  Batch batch;
  Grid grid;
  BackwardDirection<T> direction[2];
};

}  // namespace persistent
}  // namespace fusedrnn
