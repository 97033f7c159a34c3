// The forward block program. A block owns kUnits units of one direction and one slice of rows, and holds all rows of
// weight_hh that feed them. Stage 0 publishes h0; stage p > 0 is step s = p - 1 of the launch: it multiplies the h that
// stage p - 1 left in the exchange buffer, finishes its units' gates and leaves their h for the next.
// docs/persistent.md follows one stage.
#pragma once
#include "cuda/persistent/block.h"

namespace fusedrnn {
namespace persistent {
namespace {

template <class T, class Cell, int kCapacity>
struct ForwardProgram {
  using Arguments = ForwardProgramArguments<T>;
  using Direction = ForwardDirection<T>;
  using V = Scalar<float>;
  static constexpr int kUnits = Operand<T>::kUnits, kSlots = Cell::traits.slots,
                       kGates = Cell::traits.recurrent[0].count;
  static constexpr int kLength = product_depth(Pass::forward, kGates, kCapacity);
  static constexpr bool kHasC = Cell::traits.states == 2;
  using At = BlockPosition<T>;
  using Product = BlockProduct<T, weight_rows(Pass::forward, kGates, kUnits), kLength>;
  using Exchange = persistent::Exchange<T, kLength, kCapacity>;
  static constexpr int kCells = At::kCells;

  static_assert(in_gate_order(Cell::traits.recurrent[0]) && Cell::traits.phases == 1 &&
                Cell::traits.per_unit.rows == 0);

  struct Thread {
    typename Product::Registers product;
    float bias[kCells][kSlots];
    float h[kCells], c[kCells];
    int length;  // of the cells' row; -1 if there is none, or no such units
    // Of the step at hand: x's part of the slots, then all of them, activated.
    float slot[kCells][kSlots];
    bool cut;
  };

  template <class Policy>
  FUSEDRNN_DEVICE static void run(Policy& policy, const Arguments& arguments, int first_stage, int end_stage) {
    Block<Policy>(policy, arguments).run(first_stage, end_stage);
  }

  template <class Policy>
  class Block : BlockBase<Policy, ForwardProgram> {
    using Base = BlockBase<Policy, ForwardProgram>;
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
        const int s = stage - 1;
        if (s >= 0) {
          // 1. What the step needs of x is on its way while h comes from the other blocks.
          load_inputs(s);
          // 2. h . weight_hh: each warp its part of k, as soon as that h is there; then together.
          Product::run(policy, exchange.of_stage(s), columns);
          policy.barrier();
          // 3. The gates of the block's own units; h, c in registers.
          advance(s, columns);
        }
        // 4. The new h goes to the other blocks as early as can be.
        if (stage < steps) send(stage);
        // 5. The partial sums have been read: the next stage may write them.
        policy.barrier();
        // 6. What nobody waits for.
        if (s >= 0) store_outputs(s);
        if (stage >= 2) take_back(stage - 2);
        if (stage % kFencePeriod == 0) policy.fence();
      }
      end_stage == steps + 1 ? store_state() : store_carried();
    }

   private:
    FUSEDRNN_DEVICE void load_weights(bool pack) {
      const int hidden = static_cast<int>(a.batch.hidden_size);
      Product::load_weights(policy, a.grid.packed + Index(at.index) * Product::kPacked, pack, [&](int r, int k) {
        const int gate = r / kUnits, unit = at.first_unit + r % kUnits;
        if (gate >= kGates || unit >= hidden || k >= hidden) return narrow<T>(0);
        return Operand<T>::factor(d.weight_hh[(Index(gate) * hidden + unit) * hidden + k]);
      });
    }

    FUSEDRNN_DEVICE void load_state(bool initial) {
      policy.each([&](int thread, Thread& mine) {
        mine.length = at.holds(thread, a.batch) ? at.length(thread, a.batch) : -1;
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) mine.h[i] = mine.c[i] = 0;
      });
      each_cell([&](Thread& mine, int thread, int i) {
        const int unit = at.unit(thread) + i;
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) mine.bias[i][slot] = d.bias[slot * hidden() + unit];
        if (initial) {
          if (d.h0.data) mine.h[i] = widen(d.h0.at(at.row(thread))[unit]);
          if (kHasC && d.c0.data) mine.c[i] = d.c0.at(at.row(thread))[unit];
        } else {
          mine.h[i] = *at.carried(thread, i, 0, a.grid);
          mine.c[i] = *at.carried(thread, i, 1, a.grid);
        }
      });
    }

    // Only loads, no arithmetic: that would wait for them here.
    FUSEDRNN_DEVICE void load_inputs(int s) {
      constexpr int first = Cell::traits.input.first, count = Cell::traits.input.count;
      const int step = step_of(s);
      each_thread([&](Thread& mine, int thread) {
        if (step < mine.length) mine.cut = at.cut(step, at.time(step, mine.length), at.row(thread), a.batch);
        if (s + 1 == a.batch.steps()) return;
        FUSEDRNN_UNROLL
        for (int slot = first; slot < first + count; ++slot)
          policy.prefetch(d.gates.at(s + 1, at.row(thread)) + slot * hidden() + at.unit(thread));
      });
      each_cell([&](Thread& mine, int thread, int i) {
        if (step >= mine.length) return;
        const float* const input = d.gates.at(s, at.row(thread)) + at.unit(thread) + i;
        FUSEDRNN_UNROLL
        for (int slot = first; slot < first + count; ++slot) mine.slot[i][slot] = input[slot * hidden()];
      });
    }

    FUSEDRNN_DEVICE void advance(int s, int columns) {
      each_thread([&](Thread& mine, int thread) {
        if (step_of(s) >= mine.length) return;
        constexpr int first = Cell::traits.input.first, count = Cell::traits.input.count;
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
          FUSEDRNN_UNROLL
          for (int slot = 0; slot < kSlots; ++slot) {
            const bool fed = slot >= first && slot < first + count;
            mine.slot[i][slot] = fed ? mine.bias[i][slot] + mine.slot[i][slot] : mine.bias[i][slot];
          }
        }
        add_products(mine, thread, columns);
        // Of a unit beyond the last one too: without a branch the cells are computed side by side.
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) apply_cell(mine, i);
      });
    }
    FUSEDRNN_DEVICE void add_products(Thread& mine, int thread, int columns) {
      FUSEDRNN_UNROLL
      for (int gate = 0; gate < kGates; ++gate) {
        float sum[kCells];
        Product::total(policy, thread, gate * kUnits + at.unit_of(thread), at.row_of(thread), columns, sum);
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i)
          // Chosen, not multiplied by zero: what stood before the cut may be nan.
          mine.slot[i][Cell::traits.recurrent[0].first + gate] += mine.cut ? 0 : sum[i];
      }
    }
    FUSEDRNN_DEVICE static void apply_cell(Thread& mine, int i) {
      V slot[kSlots];
      FUSEDRNN_UNROLL
      for (int k = 0; k < kSlots; ++k) slot[k] = V(mine.slot[i][k]);
      const State<V> previous = {V(mine.cut ? 0 : mine.h[i]), V(mine.cut ? 0 : mine.c[i])};
      State<V> next = previous;
      Cell::forward(slot, previous, static_cast<const V*>(nullptr), next);
      FUSEDRNN_UNROLL
      for (int k = 0; k < kSlots; ++k) mine.slot[i][k] = slot[k].value;
      mine.h[i] = widen(narrow<T>(next.h.value));  // h is what an array can hold of it
      if (kHasC) mine.c[i] = next.c.value;
    }

    FUSEDRNN_DEVICE void send(int stage) {
      each_thread([&](Thread& mine, int thread) {
        T value[kCells];
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) value[i] = narrow<T>(at.unit(thread) + i < hidden() ? mine.h[i] : 0);
        exchange.send(policy, stage, at.unit(thread), at.row_of(thread), value);
      });
    }
    FUSEDRNN_DEVICE void take_back(int stage) {
      each_thread([&](Thread&, int thread) { exchange.take_back(policy, stage, at.unit(thread), at.row_of(thread)); });
    }

    FUSEDRNN_DEVICE void store_outputs(int s) {
      each_cell([&](Thread& mine, int thread, int i) {
        const int step = step_of(s), unit = at.unit(thread) + i;
        const bool alive = step < mine.length;
        const Index row = at.row(thread);
        if (d.y.data) d.y.at(at.time(step, mine.length), row)[unit] = narrow<T>(alive ? mine.h[i] : 0);
        if (!alive || !a.keep) return;
        float* const gates = d.gates.at(s, row) + unit;
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) gates[slot * hidden()] = mine.slot[i][slot];
        if (kHasC) d.cells.at(s, row)[unit] = mine.c[i];
      });
    }

    FUSEDRNN_DEVICE void store_state() {
      each_cell([&](Thread& mine, int thread, int i) {
        const Index row = at.row(thread);
        if (d.hn.data) d.hn.at(row)[at.unit(thread) + i] = narrow<T>(mine.h[i]);
        if (kHasC && d.cn.data) d.cn.at(row)[at.unit(thread) + i] = mine.c[i];
      });
    }
    FUSEDRNN_DEVICE void store_carried() {
      each_cell([&](Thread& mine, int thread, int i) {
        *at.carried(thread, i, 0, a.grid) = mine.h[i];
        *at.carried(thread, i, 1, a.grid) = mine.c[i];
      });
    }
  };
};

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
