// What the forward and the backward block program have in common: which part of the work a block has, its rows and
// steps, and its exchange with the other blocks of its group.
#pragma once
#include "cells/registry.h"
#include "cuda/persistent/arguments.h"
#include "cuda/persistent/product.h"
#include "cuda/runtime/scalar.h"

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

// One block's place in the grid, and which cells its threads have: the units of a word, of one row of the slice.
template <class T>
struct BlockPosition {
  static constexpr int kUnits = Operand<T>::kUnits, kCells = Operand<T>::kPerWord;
  static constexpr int kAcross = kUnits / kCells;  // threads that share a row
  static_assert(kThreads / kAcross == kMaxSliceRows, "each row of a slice has its threads");

  int index, group, direction, first_unit;
  int rows;  // of the slice
  Index first_row;
  bool reverse;

  FUSEDRNN_DEVICE BlockPosition(int index, const Batch& batch, const Grid& grid)
      : index(index), group(index / grid.blocks), direction(group / grid.slices) {
    first_unit = index % grid.blocks * kUnits;
    first_row = Index(group % grid.slices) * grid.slice_rows;
    rows = static_cast<int>(smaller(grid.slice_rows, batch.rows - first_row));
    reverse = (direction == 1) != batch.first_is_reverse;
  }

  // Of a thread: the first of its units within the block, its row within the slice; unit and row in the arrays.
  FUSEDRNN_DEVICE static int unit_of(int thread) { return thread % kAcross * kCells; }
  FUSEDRNN_DEVICE static int row_of(int thread) { return thread / kAcross; }
  FUSEDRNN_DEVICE int unit(int thread) const { return first_unit + unit_of(thread); }
  FUSEDRNN_DEVICE Index row(int thread) const { return first_row + row_of(thread); }
  FUSEDRNN_DEVICE bool holds(int thread, const Batch& batch) const {
    return row_of(thread) < rows && unit(thread) < batch.hidden_size;
  }

  FUSEDRNN_DEVICE int length(int thread, const Batch& batch) const {
    const Index length = batch.lengths ? batch.lengths[row(thread)] : batch.total_steps;
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

// How the blocks of a group hand each other the kLength numbers of each row that a stage's product multiplies. A word
// is missing until it is sent; whoever needs it looks again and again, without a flag. Stage p fills buffer p % 16.
template <class T, int kLength, int kCapacity>
struct Exchange {
  using O = Operand<T>;

  std::uint32_t* buffers;
  Index stride;

  FUSEDRNN_DEVICE Exchange(const Grid& grid, int group)
      : buffers(grid.exchange + Index(group) * kExchangeBuffers * grid.exchange_stride), stride(grid.exchange_stride) {}

  FUSEDRNN_DEVICE std::uint32_t* of_stage(int stage) const { return buffers + stage % kExchangeBuffers * stride; }

  // The numbers k, k + 1, ... of a word, of row n. One bit pattern of nan, which says that a word is missing, becomes
  // another.
  template <class Policy>
  FUSEDRNN_DEVICE void send(Policy& policy, int stage, int k, int n, const T (&value)[O::kPerWord]) const {
    const std::uint32_t word = O::word([&](int next) { return O::factor(value[next]); });
    policy.store_exchange(of_stage(stage) + at(k, n), word == kMissing ? word & 0x7fff7fff : word);
  }
  // A word that a thread sent in a stage is missing again. The next stage's words are all there: so every block has
  // read this stage's, without which it could not have sent them.
  template <class Policy>
  FUSEDRNN_DEVICE void take_back(Policy& policy, int stage, int k, int n) const {
    policy.store_exchange(of_stage(stage) + at(k, n), kMissing);
  }

  // Before the first stage, for the i-th word of all groups' buffers: what will be sent is missing, and what pads rows
  // and units is zero for good, as a zero weight would make nan of a nan left there.
  FUSEDRNN_DEVICE static void prepare(const Batch& batch, const Grid& grid, Index i) {
    constexpr int words = kLength / O::kPerWord;  // of a row
    const Index buffer = i / grid.exchange_stride, group = buffer / kExchangeBuffers;
    const int within = static_cast<int>(i % grid.exchange_stride), k = within % words * O::kPerWord, n = within / words;
    const bool sent = k % kCapacity < batch.hidden_size && group % grid.slices * grid.slice_rows + n < batch.rows;
    grid.exchange[buffer * grid.exchange_stride + at(k, n)] = sent ? kMissing : 0;
  }

 private:
  FUSEDRNN_DEVICE static int at(int k, int n) { return exchange_index<T>(k, n, kLength) / O::kPerWord; }
};

// One block at work on a program, forward or backward.
template <class Policy, class Program>
class BlockBase {
 protected:
  using Thread = typename Program::Thread;

  Policy& policy;
  const typename Program::Arguments& a;
  const typename Program::At at;
  const typename Program::Direction& d;
  const typename Program::Exchange exchange;

  FUSEDRNN_DEVICE BlockBase(Policy& policy, const typename Program::Arguments& arguments)
      : policy(policy),
        a(arguments),
        at(policy.block(), a.batch, a.grid),
        d(a.direction[at.direction]),
        exchange(a.grid, at.group) {}

  FUSEDRNN_DEVICE Index hidden() const { return a.batch.hidden_size; }
  FUSEDRNN_DEVICE int step_of(int s) const { return static_cast<int>(a.batch.first_step) + s; }

  // f(thread's registers, thread) for each thread that has cells; with i, for each of its cells that exists.
  template <class F>
  FUSEDRNN_DEVICE void each_thread(F f) {
    policy.each([&](int thread, Thread& mine) {
      if (mine.length >= 0) f(mine, thread);
    });
  }
  template <class F>
  FUSEDRNN_DEVICE void each_cell(F f) {
    each_thread([&](Thread& mine, int thread) {
      FUSEDRNN_UNROLL
      for (int i = 0; i < Program::At::kCells; ++i)
        if (at.unit(thread) + i < hidden()) f(mine, thread, i);
    });
  }
};

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
