// The backward block program. A block owns kUnits units of one direction and one slice of rows: it forms the gradient
// of their h, so it holds the columns of weight_hh that those units feed. Stage p is step s = S - 1 - p of the launch's
// S steps: it multiplies the gate gradients that stage p - 1 left in the exchange buffer, which gives dh of its own
// step, and leaves its units' gate gradients for the next. Stage S is the product alone, and gives the gradient of the
// state before the first step.
#pragma once
#include "cuda/persistent/block.h"

namespace fusedrnn {
namespace persistent {
namespace {

template <class T, class Cell, int kCapacity>
struct BackwardProgram {
  using Arguments = BackwardProgramArguments<T>;
  using Direction = BackwardDirection<T>;
  using V = Scalar<float>;
  static constexpr int kUnits = Operand<T>::kUnits, kSlots = Cell::traits.slots,
                       kGates = Cell::traits.recurrent[0].count;
  static constexpr int kLength = product_depth(Pass::backward, kGates, kCapacity);
  static constexpr bool kHasC = Cell::traits.states == 2;
  using At = BlockPosition<T>;
  using Product = BlockProduct<T, weight_rows(Pass::backward, kGates, kUnits), kLength>;
  using Exchange = persistent::Exchange<T, kLength, kCapacity>;
  static constexpr int kCells = At::kCells;

  static_assert(in_gate_order(Cell::traits.recurrent[0]) && Cell::traits.phases == 1 &&
                Cell::traits.per_unit.rows == 0);

  struct Thread {
    typename Product::Registers product;
    float dh[kCells], dc[kCells];  // from the step after, without what comes through weight_hh
    bool linked;                   // whether anything does: the step after is the row's own, and not cut off
    int length;                    // of the cells' row; -1 if there is none, or no such units
    // Of the step at hand.
    float slot[kCells][kSlots];  // activated gates, then their gradients
    float previous_c[kCells], c[kCells];
    T previous_h[kCells], dy[kCells];
    bool cut;
  };

  template <class Policy>
  FUSEDRNN_DEVICE static void run(Policy& policy, const Arguments& arguments, int first_stage, int end_stage) {
    Block<Policy>(policy, arguments).run(first_stage, end_stage);
  }

  template <class Policy>
  class Block : BlockBase<Policy, BackwardProgram> {
    using Base = BlockBase<Policy, BackwardProgram>;
    using Base::policy, Base::a, Base::at, Base::d, Base::exchange, Base::hidden, Base::step_of, Base::each_thread,
        Base::each_cell;

   public:
    FUSEDRNN_DEVICE Block(Policy& policy, const Arguments& arguments) : Base(policy, arguments) {}

    FUSEDRNN_DEVICE void run(int first_stage, int end_stage) {
      const int steps = a.batch.steps(), columns = a.grid.slice_rows;
      load_weights(first_stage == 0);
      load_state(first_stage == 0);
      FUSEDRNN_KEEP_ROLLED
      for (int stage = first_stage; stage < end_stage; ++stage) {
        const int s = steps - 1 - stage;
        // 1. The tape and dy are on their way while gate gradients come from the other blocks.
        if (s >= 0) load_tape(s);
        if (stage > 0) {
          // 2. dgates . weight_hh: each warp its part of the gates, as soon as those are there; then together.
          Product::run(policy, exchange.of_stage(stage - 1), columns);
          policy.barrier();
          add_recurrent(columns);
        }
        if (s >= 0) {
          // 3. The gates of the block's own units.
          go_back(s);
          // 4. Their gradients go to the other blocks as early as can be.
          send(stage);
        }
        // 5. The partial sums have been read: the next stage may write them.
        policy.barrier();
        // 6. What nobody waits for.
        if (s >= 0) store_outputs(s);
        if (stage >= 2) take_back(stage - 2);
        if (stage % kFencePeriod == 0) policy.fence();
      }
      end_stage == steps + 1 ? store_gradients() : store_carried();
    }

   private:
    FUSEDRNN_DEVICE void load_weights(bool pack) {
      const int hidden = static_cast<int>(a.batch.hidden_size);
      Product::load_weights(policy, a.grid.packed + Index(at.index) * Product::kPacked, pack, [&](int r, int k) {
        const int unit = at.first_unit + r, gate = k / kCapacity, from = k % kCapacity;
        if (unit >= hidden || from >= hidden) return narrow<T>(0);
        return Operand<T>::factor(d.weight_hh[(Index(gate) * hidden + from) * hidden + unit]);
      });
    }

    FUSEDRNN_DEVICE void load_state(bool initial) {
      policy.each([&](int thread, Thread& mine) {
        mine.length = at.holds(thread, a.batch) ? at.length(thread, a.batch) : -1;
        mine.linked = false;
      });
      each_cell([&](Thread& mine, int thread, int i) {
        mine.dc[i] = 0;
        if (initial) {
          mine.dh[i] = d.dh.at(at.row(thread))[at.unit(thread) + i];
          if (kHasC) mine.dc[i] = d.dc.at(at.row(thread))[at.unit(thread) + i];
        } else {
          mine.dh[i] = *at.carried(thread, i, 0, a.grid);
          mine.dc[i] = *at.carried(thread, i, 1, a.grid);
          mine.linked = *at.carried(thread, i, 2, a.grid) != 0;
        }
      });
    }

    // Only loads, no arithmetic: that would wait for them here.
    FUSEDRNN_DEVICE void load_tape(int s) {
      const int step = step_of(s);
      each_thread([&](Thread& mine, int thread) {
        if (step < mine.length) mine.cut = at.cut(step, at.time(step, mine.length), at.row(thread), a.batch);
        if (s > 0) prefetch_tape(s - 1, mine, thread);
      });
      each_cell([&](Thread& mine, int thread, int i) {
        if (step >= mine.length) return;
        const int unit = at.unit(thread) + i;
        const Index row = at.row(thread);
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) mine.slot[i][slot] = d.gates.at(s, row)[slot * hidden() + unit];
        mine.dy[i] = d.dy.data ? d.dy.at(at.time(step, mine.length), row)[unit] : narrow<T>(0);
        mine.previous_h[i] = narrow<T>(0);
        mine.previous_c[i] = mine.c[i] = 0;
        if constexpr (kHasC) {
          mine.c[i] = d.cells.at(s, row)[unit];
          if (s > 0) mine.previous_c[i] = d.cells.at(s - 1, row)[unit];
          if (s == 0 && d.c0.data) mine.previous_c[i] = d.c0.at(row)[unit];
        } else {
          mine.previous_h[i] = d.h_previous.at(s, row)[unit];
        }
      });
    }
    FUSEDRNN_DEVICE void prefetch_tape(int s, const Thread& mine, int thread) {
      const Index row = at.row(thread);
      FUSEDRNN_UNROLL
      for (int slot = 0; slot < kSlots; ++slot) policy.prefetch(d.gates.at(s, row) + slot * hidden() + at.unit(thread));
      if (d.dy.data) policy.prefetch(d.dy.at(at.time(step_of(s), mine.length), row) + at.unit(thread));
      if constexpr (!kHasC) policy.prefetch(d.h_previous.at(s, row) + at.unit(thread));
      if (kHasC && s > 0) policy.prefetch(d.cells.at(s - 1, row) + at.unit(thread));
    }

    FUSEDRNN_DEVICE void add_recurrent(int columns) {
      each_thread([&](Thread& mine, int thread) {
        // Chosen, not multiplied by zero: what stands beyond a cut may be nan.
        if (!mine.linked) return;
        float sum[kCells];
        Product::total(policy, thread, at.unit_of(thread), at.row_of(thread), columns, sum);
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) mine.dh[i] += sum[i];
      });
    }

    FUSEDRNN_DEVICE void go_back(int s) {
      each_thread([&](Thread& mine, int) {
        const bool alive = step_of(s) < mine.length;
        if (!alive) {
          FUSEDRNN_UNROLL
          for (auto& slots : mine.slot) {
            FUSEDRNN_UNROLL
            for (float& slot : slots) slot = 0;
          }
          return;
        }
        // Of a unit beyond the last one too: without a branch the cells are computed side by side.
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) apply_cell(mine, i);
        mine.linked = !mine.cut;
      });
    }
    FUSEDRNN_DEVICE static void apply_cell(Thread& mine, int i) {
      V slot[kSlots], dslot[kSlots];
      FUSEDRNN_UNROLL
      for (int k = 0; k < kSlots; ++k) {
        slot[k] = V(mine.slot[i][k]);
        dslot[k] = V(0);
      }
      const State<V> previous = {V(widen(mine.previous_h[i])), V(mine.cut ? 0 : mine.previous_c[i])};
      State<V> gradient = {V(mine.dh[i] + widen(mine.dy[i])), V(mine.dc[i])};
      State<V> dprevious = {V(0), V(0)};
      Cell::backward(slot, previous, V(mine.c[i]), gradient, static_cast<const V*>(nullptr), dslot, dprevious);
      FUSEDRNN_UNROLL
      for (int k = 0; k < kSlots; ++k) mine.slot[i][k] = dslot[k].value;
      mine.dh[i] = mine.cut ? 0 : dprevious.h.value;
      mine.dc[i] = mine.cut ? 0 : dprevious.c.value;
    }

    FUSEDRNN_DEVICE void send(int stage) {
      each_thread([&](Thread& mine, int thread) {
        constexpr int first = Cell::traits.recurrent[0].first;
        FUSEDRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate) {
          T value[kCells];
          FUSEDRNN_UNROLL
          for (int i = 0; i < kCells; ++i)
            value[i] = narrow<T>(at.unit(thread) + i < hidden() ? mine.slot[i][first + gate] : 0);
          exchange.send(policy, stage, gate * kCapacity + at.unit(thread), at.row_of(thread), value);
        }
      });
    }
    FUSEDRNN_DEVICE void take_back(int stage) {
      each_thread([&](Thread&, int thread) {
        FUSEDRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate)
          exchange.take_back(policy, stage, gate * kCapacity + at.unit(thread), at.row_of(thread));
      });
    }

    FUSEDRNN_DEVICE void store_outputs(int s) {
      each_cell([&](Thread& mine, int thread, int i) {
        T* const dgates = d.dgates.at(s, at.row(thread)) + at.unit(thread) + i;
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) dgates[slot * hidden()] = narrow<T>(mine.slot[i][slot]);
      });
    }

    FUSEDRNN_DEVICE void store_gradients() {
      each_cell([&](Thread& mine, int thread, int i) {
        const Index row = at.row(thread);
        d.dh.at(row)[at.unit(thread) + i] = mine.dh[i];
        if (kHasC) d.dc.at(row)[at.unit(thread) + i] = mine.dc[i];
      });
    }
    FUSEDRNN_DEVICE void store_carried() {
      each_cell([&](Thread& mine, int thread, int i) {
        *at.carried(thread, i, 0, a.grid) = mine.dh[i];
        *at.carried(thread, i, 1, a.grid) = mine.dc[i];
        *at.carried(thread, i, 2, a.grid) = mine.linked;
      });
    }
  };
};

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
