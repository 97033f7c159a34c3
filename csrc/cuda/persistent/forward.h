// The forward block program. A block owns kUnits units of one direction and one slice of rows, and holds all rows of
// weight_hh that feed them. Phase 0 publishes h0; phase p > 0 is step s = p - 1 of the launch: it multiplies the h that
// phase p - 1 left in the exchange buffer, finishes its units' gates and leaves their h for the next.
// docs/persistent.md follows one phase.
#pragma once
#include "cuda/persistent/block.h"

namespace fusedrnn {
namespace persistent {
namespace {

template <class T, class Cell, int kCapacity>
struct Forward {
  using Arguments = ForwardArguments<T>;
  using V = Scalar<float>;
  static constexpr int kUnits = Operand<T>::kUnits, kSlots = Cell::traits.slots,
                       kGates = Cell::traits.recurrent[0].count;
  static constexpr bool kHasC = Cell::traits.states == 2;
  using At = Place<kUnits>;
  using Product = persistent::Product<T, weight_rows(Pass::forward, kGates, kUnits),
                                      product_depth(Pass::forward, kGates, kCapacity)>;

  static_assert(in_gate_order(Cell::traits.recurrent[0]) && Cell::traits.phases == 1 && Cell::traits.peepholes == 0);

  struct Thread {
    typename Product::Registers product;
    float bias[kSlots];  // of the thread's unit: its cells differ in the row only
    float h[At::kCells], c[At::kCells];
    int length[At::kCells];  // -1 for a cell that does not exist
    // Of the step at hand.
    float slot[At::kCells][kSlots];
    bool cut[At::kCells];
  };

  template <class Policy>
  FUSEDRNN_DEVICE static void run(Policy& policy, const Arguments& arguments, int first_phase, int end_phase) {
    Block<Policy>(policy, arguments).run(first_phase, end_phase);
  }

  template <class Policy>
  class Block {
   public:
    FUSEDRNN_DEVICE Block(Policy& policy, const Arguments& arguments)
        : policy(policy),
          a(arguments),
          at(policy.block(), a.batch, a.grid),
          d(a.direction[at.direction]),
          exchange(a.grid, at) {}

    FUSEDRNN_DEVICE void run(int first_phase, int end_phase) {
      const int steps = a.batch.steps(), columns = a.grid.slice_rows;
      load_weights(first_phase == 0);
      load_state(first_phase == 0);
      FUSEDRNN_KEEP_ROLLED
      for (int phase = first_phase; phase < end_phase; ++phase) {
        const int s = phase - 1;
        if (s >= 0) {
          // 1. What the step needs of x is on its way while the other blocks are still at the step before.
          load_inputs(s);
          // 2. The h that the step starts from is complete.
          exchange.wait_for_phase_before(policy, phase);
          // 3. h . weight_hh: each warp its part of k, then together.
          Product::run(policy, exchange.of_phase(s), columns);
          policy.barrier();
          // 4. The gates of the block's own units; h, c in registers.
          advance(s, columns);
        }
        if (phase < steps) {
          // 5. The new h goes to the other blocks as early as can be.
          send(phase);
          policy.barrier();
          exchange.publish(policy, phase);
        }
        // 6. What nobody waits for.
        if (s >= 0) store_outputs(s);
      }
      end_phase == steps + 1 ? store_state() : store_carried();
    }

   private:
    Policy& policy;
    const Arguments& a;
    const At at;
    const ForwardDirection<T>& d;
    const Exchange<T> exchange;

    FUSEDRNN_DEVICE Index hidden() const { return a.batch.hidden_size; }
    FUSEDRNN_DEVICE int step_of(int s) const { return static_cast<int>(a.batch.first_step) + s; }

    // f(thread's registers, thread, i) for each cell of each thread that exists.
    template <class F>
    FUSEDRNN_DEVICE void each_cell(F f) {
      policy.each([&](int thread, Thread& mine) {
        FUSEDRNN_UNROLL
        for (int i = 0; i < At::kCells; ++i)
          if (mine.length[i] >= 0) f(mine, thread, i);
      });
    }

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
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot)
          mine.bias[slot] = at.unit(thread) < hidden() ? d.bias[slot * hidden() + at.unit(thread)] : 0;
        FUSEDRNN_UNROLL
        for (int i = 0; i < At::kCells; ++i) {
          mine.length[i] = at.holds(thread, i, a.batch) ? at.length(thread, i, a.batch) : -1;
          mine.h[i] = mine.c[i] = 0;
          if (mine.length[i] < 0) continue;
          if (initial) {
            const Index row = at.row(thread, i);
            if (d.h0.data) mine.h[i] = widen(d.h0.at(row)[at.unit(thread)]);
            if (kHasC && d.c0.data) mine.c[i] = d.c0.at(row)[at.unit(thread)];
          } else {
            mine.h[i] = *at.carried(thread, i, 0, a.grid);
            mine.c[i] = *at.carried(thread, i, 1, a.grid);
          }
        }
      });
    }

    FUSEDRNN_DEVICE void load_inputs(int s) {
      each_cell([&](Thread& mine, int thread, int i) {
        constexpr int first = Cell::traits.input.first, count = Cell::traits.input.count;
        const int step = step_of(s);
        if (step >= mine.length[i]) return;
        const Index row = at.row(thread, i);
        mine.cut[i] = at.cut(step, at.time(step, mine.length[i]), row, a.batch);
        const float* input = d.gates.at(s, row) + at.unit(thread);
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
          mine.slot[i][slot] = mine.bias[slot];
          if (slot >= first && slot < first + count) mine.slot[i][slot] += input[slot * hidden()];
        }
      });
    }

    FUSEDRNN_DEVICE void advance(int s, int columns) {
      each_cell([&](Thread& mine, int thread, int i) {
        constexpr int first = Cell::traits.recurrent[0].first;
        if (step_of(s) >= mine.length[i]) return;
        const bool cut = mine.cut[i];
        FUSEDRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate) {
          const int r = gate * kUnits + at.unit_of(thread);
          const float sum = Product::total(policy, thread, r, at.row_of(thread, i), columns);
          // Chosen, not multiplied by zero: what stood before the cut may be nan.
          mine.slot[i][first + gate] += cut ? 0 : sum;
        }
        V slot[kSlots];
        FUSEDRNN_UNROLL
        for (int k = 0; k < kSlots; ++k) slot[k] = V(mine.slot[i][k]);
        const State<V> previous = {V(cut ? 0 : mine.h[i]), V(cut ? 0 : mine.c[i])};
        State<V> next = previous;
        Cell::forward(slot, previous, static_cast<const V*>(nullptr), next);
        FUSEDRNN_UNROLL
        for (int k = 0; k < kSlots; ++k) mine.slot[i][k] = slot[k].value;
        mine.h[i] = widen(narrow<T>(next.h.value));  // h is what an array can hold of it
        if (kHasC) mine.c[i] = next.c.value;
      });
    }

    // What pads rows and units stays as the call cleared it, so that it cannot turn zeros among the weights into nan.
    FUSEDRNN_DEVICE void send(int phase) {
      each_cell([&](Thread& mine, int thread, int i) {
        const int index = exchange_index<T>(at.unit(thread), at.row_of(thread, i), kCapacity);
        policy.store_exchange(exchange.of_phase(phase) + index, Operand<T>::factor(narrow<T>(mine.h[i])));
      });
    }

    FUSEDRNN_DEVICE void store_outputs(int s) {
      each_cell([&](Thread& mine, int thread, int i) {
        const int step = step_of(s), unit = at.unit(thread);
        const bool alive = step < mine.length[i];
        const Index row = at.row(thread, i);
        if (d.y.data) d.y.at(at.time(step, mine.length[i]), row)[unit] = narrow<T>(alive ? mine.h[i] : 0);
        if (!alive || !a.keep) return;
        float* const gates = d.gates.at(s, row) + unit;
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) gates[slot * hidden()] = mine.slot[i][slot];
        if (kHasC) d.cells.at(s, row)[unit] = mine.c[i];
      });
    }

    FUSEDRNN_DEVICE void store_state() {
      each_cell([&](Thread& mine, int thread, int i) {
        const Index row = at.row(thread, i);
        if (d.hn.data) d.hn.at(row)[at.unit(thread)] = narrow<T>(mine.h[i]);
        if (kHasC && d.cn.data) d.cn.at(row)[at.unit(thread)] = mine.c[i];
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
