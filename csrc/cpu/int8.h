// What one build offers of recurrences with weights of 8 bits.
#pragma once
#include "common/int8_layout.h"
#include "cpu/runtime/worker.h"

namespace fusedrnn {

// What a direction of a layer has beside its arguments, whose weights are not looked at.
struct Int8Direction {
  const unsigned char* packed = nullptr;  // as Int8Layout tells
  // Workspace. Of each thread: numbers of 16 bits, in groups of four, and scales of rows.
  std::uint64_t* left = nullptr;  // (threads, thread_groups)
  Index thread_groups = 0;
  float* sums = nullptr;  // (rows of x at once, blocks, slots, 16): bias and x . weight_ih
  float* kept = nullptr;  // of sequences, cells of two phases: (rows, slots, padded H)

  // Groups of four that a thread needs for `input_rows` rows of x at once and `rows` rows of h.
  FUSEDRNN_INLINE static Index groups_for(Index input_size, Index hidden_size, Index input_rows, Index rows) {
    // Eight bytes more for each row's scale, and no cache line of two threads.
    return (input_rows * (Int8Panel::groups_of(input_size) + 1) + rows * (Int8Panel::groups_of(hidden_size) + 1) + 15) /
           8 * 8;
  }
};

struct Int8CellKernels {
  CellTraits traits;
  // One step.
  void (*step)(const StepArguments<float>& arguments, const Int8Direction& direction, Worker& worker);
  // A sequence, without a tape.
  void (*forward)(const ForwardArguments<float>& arguments, const Int8Direction& direction, Worker& worker);
};

struct Int8Kernels {
  const Int8CellKernels* cells;
  const char* instruction;  // that multiplies
};

}  // namespace fusedrnn
