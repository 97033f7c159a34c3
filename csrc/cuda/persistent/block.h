// What the forward and the backward block program have in common: which part of the work a block has, its rows and
// steps, and its exchange with the other blocks of its group.
#pragma once
#include "cells/registry.h"
#include "cuda/persistent/arguments.h"
#include "cuda/persistent/product.h"
#include "cuda/scalar.h"

namespace fusedrnn {
namespace persistent {
namespace {

// Whether the slots that h feeds take the gate blocks of weight_hh in their order. A table of any other order, indexed
// at run time, would lie in local memory.
constexpr bool in_gate_order(Window window) {
  for (int i = 0; i < window.count; ++i)
    if (window.gate[i] != i) return false;
  return true;
}

// One block's place in the grid.
template <int kUnits>
struct Place {
  static constexpr int kRowsAtOnce = kThreads / kUnits;  // a thread for each unit of so many rows of the batch
  static constexpr int kCells = kMaxSliceRows / kRowsAtOnce;

  int index, group, direction, first_unit;
  int rows;  // of the slice
  Index first_row;
  bool reverse;

  FUSEDRNN_DEVICE Place(int index, const Batch& batch, const Grid& grid)
      : index(index), group(index / grid.blocks), direction(group / grid.slices) {
    first_unit = index % grid.blocks * kUnits;
    first_row = Index(group % grid.slices) * grid.slice_rows;
    rows = static_cast<int>(smaller(grid.slice_rows, batch.rows - first_row));
    reverse = (direction == 1) != batch.first_is_reverse;
  }

  // Of a thread's cell i: its unit within the block, its row within the slice, its unit and row in the arrays.
  FUSEDRNN_DEVICE static int unit_of(int thread) { return thread % kUnits; }
  FUSEDRNN_DEVICE static int row_of(int thread, int i) { return thread / kUnits + i * kRowsAtOnce; }
  FUSEDRNN_DEVICE int unit(int thread) const { return first_unit + unit_of(thread); }
  FUSEDRNN_DEVICE Index row(int thread, int i) const { return first_row + row_of(thread, i); }
  FUSEDRNN_DEVICE bool holds(int thread, int i, const Batch& batch) const {
    return row_of(thread, i) < rows && unit(thread) < batch.hidden_size;
  }

  FUSEDRNN_DEVICE int length(int thread, int i, const Batch& batch) const {
    const Index length = batch.lengths ? batch.lengths[row(thread, i)] : batch.total_steps;
    return static_cast<int>(smaller(larger(length, 0), batch.total_steps));
  }
  FUSEDRNN_DEVICE int time(int step, int length) const { return reverse && step < length ? length - 1 - step : step; }
  // Whether a row enters a step of its own from zero.
  FUSEDRNN_DEVICE bool cut(int step, int time, Index row, const Batch& batch) const {
    if (!batch.reset || (reverse && step == 0)) return false;
    return batch.reset[(reverse ? time + 1 : time) * batch.reset_time + row * batch.reset_row];
  }

  // Where a thread keeps a value of its cell i between two kernels.
  FUSEDRNN_DEVICE float* carried(int thread, int i, int value, const Grid& grid) const {
    return grid.carry + ((Index(index) * kCells + i) * kCarriedValues + value) * kThreads + thread;
  }
};

// The group's two buffers and its flags. Phase p publishes p + 1 and, unless it is the last, fills buffer p % 2 with
// what phase p + 1 multiplies.
template <class T>
struct Exchange {
  T* buffers;
  Index stride;
  unsigned* flags;
  int blocks, own;

  template <class At>
  FUSEDRNN_DEVICE Exchange(const Grid& grid, const At& at) : stride(grid.exchange_stride), blocks(grid.blocks) {
    buffers = static_cast<T*>(grid.exchange) + at.group * 2 * stride;
    flags = grid.flags + at.group * blocks;
    own = at.index % blocks;
  }
  FUSEDRNN_DEVICE T* of_phase(int phase) const { return buffers + phase % 2 * stride; }

  // Until every block of the group has done the phase before.
  template <class Policy>
  FUSEDRNN_DEVICE void wait_for_phase_before(Policy& policy, int phase) const {
    policy.wait(flags, blocks, static_cast<unsigned>(phase));
  }
  template <class Policy>
  FUSEDRNN_DEVICE void publish(Policy& policy, int phase) const {
    policy.publish(flags + own, static_cast<unsigned>(phase) + 1);
  }
};

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
