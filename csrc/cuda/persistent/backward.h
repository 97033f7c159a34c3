// The backward block program. A block owns kUnits units of one direction and one slice of rows: it forms the gradient
// of their h, so it holds the columns of weight_hh that those units feed. Phase p is step s = S - 1 - p of the launch's
// S steps: it multiplies the gate gradients that phase p - 1 left in the exchange buffer, which gives dh of its own
// step, and leaves its units' gate gradients for the next. Phase S is the product alone, and gives the gradient of the
// state before the first step.
#pragma once
#include "cuda/persistent/block.h"

namespace fusedrnn {
namespace persistent {
namespace {

template <class T, class Cell, int kCapacity>
struct Backward {
  using Arguments = BackwardArguments<T>;
  using V = Scalar<float>;
  static constexpr int kUnits = Operand<T>::kUnits, kSlots = Cell::traits.slots,
                       kGates = Cell::traits.recurrent[0].count;
  static constexpr int kLength = product_depth(Pass::backward, kGates, kCapacity);
  static constexpr bool kHasC = Cell::traits.states == 2;
  using At = Place<kUnits>;
  using Product = persistent::Product<T, weight_rows(Pass::backward, kGates, kUnits), kLength>;

  static_assert(in_gate_order(Cell::traits.recurrent[0]) && Cell::traits.phases == 1 && Cell::traits.peepholes == 0);

  struct Thread {
    typename Product::Registers product;
    float dh[At::kCells], dc[At::kCells];  // from the step after, without what comes through weight_hh
    bool linked[At::kCells];               // whether anything does: the step after is the row's own, and not cut off
    int length[At::kCells];                // -1 for a cell that does not exist
    // Of the step at hand.
    float slot[At::kCells][kSlots];  // activated gates, then their gradients
    float previous_h[At::kCells], previous_c[At::kCells], c[At::kCells], dy[At::kCells];
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
        const int s = steps - 1 - phase;
        // 1. The tape and dy are on their way while the other blocks are still at the step after.
        if (s >= 0) load_tape(s);
        if (phase > 0) {
          // 2. The gate gradients of the step after are complete.
          exchange.wait_for_phase_before(policy, phase);
          // 3. dgates . weight_hh: each warp its part of the gates, then together.
          Product::run(policy, exchange.of_phase(phase - 1), columns);
          policy.barrier();
          add_recurrent(columns);
        }
        if (s >= 0) {
          // 4. The gates of the block's own units.
          go_back(s);
          // 5. Their gradients go to the other blocks as early as can be.
          send(phase);
          policy.barrier();
          exchange.publish(policy, phase);
          // 6. What nobody waits for.
          store_outputs(s);
        }
      }
      end_phase == steps + 1 ? store_gradients() : store_carried();
    }

   private:
    Policy& policy;
    const Arguments& a;
    const At at;
    const BackwardDirection<T>& d;
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
        const int unit = at.first_unit + r, gate = k / kCapacity, from = k % kCapacity;
        if (unit >= hidden || from >= hidden) return narrow<T>(0);
        return Operand<T>::factor(d.weight_hh[(Index(gate) * hidden + from) * hidden + unit]);
      });
    }

    FUSEDRNN_DEVICE void load_state(bool initial) {
      policy.each([&](int thread, Thread& mine) {
        FUSEDRNN_UNROLL
        for (int i = 0; i < At::kCells; ++i) {
          mine.length[i] = at.holds(thread, i, a.batch) ? at.length(thread, i, a.batch) : -1;
          mine.dh[i] = mine.dc[i] = 0;
          mine.linked[i] = false;
          if (mine.length[i] < 0) continue;
          if (initial) {
            const Index row = at.row(thread, i);
            mine.dh[i] = d.dh.at(row)[at.unit(thread)];
            if (kHasC) mine.dc[i] = d.dc.at(row)[at.unit(thread)];
          } else {
            mine.dh[i] = *at.carried(thread, i, 0, a.grid);
            mine.dc[i] = *at.carried(thread, i, 1, a.grid);
            mine.linked[i] = *at.carried(thread, i, 2, a.grid) != 0;
          }
        }
      });
    }

    FUSEDRNN_DEVICE void load_tape(int s) {
      each_cell([&](Thread& mine, int thread, int i) {
        const int step = step_of(s), unit = at.unit(thread);
        if (step >= mine.length[i]) return;
        const Index row = at.row(thread, i);
        const int time = at.time(step, mine.length[i]);
        mine.cut[i] = at.cut(step, time, row, a.batch);
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) mine.slot[i][slot] = d.gates.at(s, row)[slot * hidden() + unit];
        mine.dy[i] = d.dy.data ? widen(d.dy.at(time, row)[unit]) : 0;
        mine.previous_h[i] = mine.previous_c[i] = mine.c[i] = 0;
        if constexpr (!kHasC) {
          mine.previous_h[i] = widen(d.h_previous.at(s, row)[unit]);
        } else {
          mine.c[i] = d.cells.at(s, row)[unit];
          if (mine.cut[i]) return;
          if (s > 0) mine.previous_c[i] = d.cells.at(s - 1, row)[unit];
          if (s == 0 && d.c0.data) mine.previous_c[i] = d.c0.at(row)[unit];
        }
      });
    }

    FUSEDRNN_DEVICE void add_recurrent(int columns) {
      each_cell([&](Thread& mine, int thread, int i) {
        // Chosen, not multiplied by zero: what stands beyond a cut may be nan.
        if (!mine.linked[i]) return;
        mine.dh[i] += Product::total(policy, thread, at.unit_of(thread), at.row_of(thread, i), columns);
      });
    }

    FUSEDRNN_DEVICE void go_back(int s) {
      each_cell([&](Thread& mine, int, int i) {
        V slot[kSlots], dslot[kSlots];
        FUSEDRNN_UNROLL
        for (int k = 0; k < kSlots; ++k) {
          slot[k] = V(mine.slot[i][k]);
          dslot[k] = V(0);
        }
        if (step_of(s) < mine.length[i]) {
          const State<V> previous = {V(mine.previous_h[i]), V(mine.previous_c[i])};
          const State<V> gradient = {V(mine.dh[i] + mine.dy[i]), V(mine.dc[i])};
          State<V> dprevious = {V(0), V(0)};
          Cell::backward(slot, previous, V(mine.c[i]), gradient, static_cast<const V*>(nullptr), dslot, dprevious);
          mine.linked[i] = !mine.cut[i];
          mine.dh[i] = mine.cut[i] ? 0 : dprevious.h.value;
          mine.dc[i] = mine.cut[i] ? 0 : dprevious.c.value;
        }
        FUSEDRNN_UNROLL
        for (int k = 0; k < kSlots; ++k) mine.slot[i][k] = dslot[k].value;
      });
    }

    // What pads rows and units stays as the call cleared it, so that it cannot turn zeros among the weights into nan.
    FUSEDRNN_DEVICE void send(int phase) {
      each_cell([&](Thread& mine, int thread, int i) {
        constexpr int first = Cell::traits.recurrent[0].first;
        FUSEDRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate) {
          const T gradient = narrow<T>(mine.slot[i][first + gate]);
          const int index = exchange_index<T>(gate * kCapacity + at.unit(thread), at.row_of(thread, i), kLength);
          policy.store_exchange(exchange.of_phase(phase) + index, Operand<T>::factor(gradient));
        }
      });
    }

    FUSEDRNN_DEVICE void store_outputs(int s) {
      each_cell([&](Thread& mine, int thread, int i) {
        T* const dgates = d.dgates.at(s, at.row(thread, i)) + at.unit(thread);
        FUSEDRNN_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) dgates[slot * hidden()] = narrow<T>(mine.slot[i][slot]);
      });
    }

    FUSEDRNN_DEVICE void store_gradients() {
      each_cell([&](Thread& mine, int thread, int i) {
        const Index row = at.row(thread, i);
        d.dh.at(row)[at.unit(thread)] = mine.dh[i];
        if (kHasC) d.dc.at(row)[at.unit(thread)] = mine.dc[i];
      });
    }
    FUSEDRNN_DEVICE void store_carried() {
      each_cell([&](Thread& mine, int thread, int i) {
        *at.carried(thread, i, 0, a.grid) = mine.dh[i];
        *at.carried(thread, i, 1, a.grid) = mine.dc[i];
        *at.carried(thread, i, 2, a.grid) = mine.linked[i];
      });
    }
  };
};

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
