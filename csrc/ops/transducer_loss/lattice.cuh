// The lattice of a transducer on a device; lattice.h beside this is the CPU's and says what is computed. A block has a
// row of the batch and its threads the cells of a diagonal t + u = d, of which thread k has every label that is k more
// than a multiple of their number. Every sum has an order of its own, so that a row's bits depend on that row alone.
#pragma once
#include "cuda/runtime/reduce.h"
#include "ops/transducer_loss/batch.cuh"

namespace fusedrnn {
namespace {

// Diagonals after which mantissas are brought back to [1, 2).
constexpr Index kTransducerNormalise = 16;

// Numbers of cells, or of two diagonals' labels: mantissas, then exponents.
template <class A>
struct TransducerNumbers {
  using Number = Scaled<Scalar<A>>;
  A* memory;
  Index count;
  FUSEDRNN_INLINE Number get(Index at) const { return {Scalar<A>(memory[at]), Scalar<A>(memory[at + count])}; }
  FUSEDRNN_INLINE void set(Index at, Number value) const {
    memory[at] = value.mantissa.value;
    memory[at + count] = value.exponent.value;
  }
};

// What the passes over the lattice of a row have in common.
template <class T>
struct TransducerRowLattice {
  using A = Accumulator<T>;
  using Number = Scaled<Scalar<A>>;
  TransducerBatch<T> batch;

  FUSEDRNN_INLINE static Number one() { return {Scalar<A>(A(1)), Scalar<A>(A(0))}; }
  FUSEDRNN_INLINE Number blank(Index n) const { return scaled_exp(Scalar<A>(batch.log_blank[n])); }
  FUSEDRNN_INLINE Number label(Index n) const { return scaled_exp(Scalar<A>(batch.log_label[n])); }
  FUSEDRNN_INLINE Index diagonals(Index b) const {
    return batch.steps_of(b) > 0 ? batch.steps_of(b) + batch.length_of(b) : 0;
  }
  // f(t, u) for the cells of a diagonal that a thread has.
  template <class Function>
  FUSEDRNN_DEVICE void own(const Block& block, int thread, Index b, Index d, const Function& f) const {
    const Index steps = batch.steps_of(b), end = smaller(batch.length_of(b), d) + 1;
    for (Index u = thread; u < end; u += block.threads())
      if (d - u < steps) f(d - u, u);
  }
};

// The forward variables, and from the last one the loss. Kept for all cells, or where `two` for the diagonal at hand
// and the one before.
template <class T>
struct TransducerForward : TransducerRowLattice<T> {
  using A = Accumulator<T>;
  using Base = TransducerRowLattice<T>;
  using Number = Scaled<Scalar<A>>;
  using Base::batch;
  bool two;
  TransducerNumbers<A> alphas;  // (B, T, U + 1), or (B, 2, U + 1)
  A* losses;                    // or null

  FUSEDRNN_DEVICE void operator()(Block& block, Index b) const {
    const Index diagonals = Base::diagonals(b);
    for (Index d = 0; d < diagonals; ++d)
      block.each([&](int thread) {
        Base::own(block, thread, b, d, [&](Index t, Index u) {
          Number alpha = d == 0 ? Base::one() : arriving(b, t, u);
          if (d % kTransducerNormalise == kTransducerNormalise - 1) alpha = alpha.normalised();
          alphas.set(at(b, t, u), alpha);
        });
      });
    if (!losses) return;
    block.each([&](int thread) {
      if (thread == 0) losses[b] = loss_of(b);
    });
  }

 private:
  FUSEDRNN_INLINE Index at(Index b, Index t, Index u) const {
    return two ? (b * 2 + (t + u) % 2) * batch.width() + u : batch.cell(b, t, u);
  }
  FUSEDRNN_DEVICE Number arriving(Index b, Index t, Index u) const {
    const Number by_blank = t > 0 ? alphas.get(at(b, t - 1, u)) * Base::blank(batch.cell(b, t - 1, u)) : Number::zero();
    const Number by_label = u > 0 ? alphas.get(at(b, t, u - 1)) * Base::label(batch.cell(b, t, u - 1)) : Number::zero();
    return by_blank + by_label;
  }
  FUSEDRNN_DEVICE A loss_of(Index b) const {
    const Index last = batch.steps_of(b) - 1, length = batch.length_of(b);
    if (last < 0) return length == 0 ? A(0) : A(INFINITY);
    const Number all = alphas.get(at(b, last, length)) * Base::blank(batch.cell(b, last, length));
    return minus_log_sum(all.mantissa.value, all.exponent.value, A(0), kExponentOfZero<A>);
  }
};

// How probable it is that a path goes on from a cell by a blank, by the label, given that it is one of the targets'.
// Their sum over a diagonal is 1.
template <class T>
struct TransducerOccupancies : TransducerRowLattice<T> {
  using A = Accumulator<T>;
  using Base = TransducerRowLattice<T>;
  using Number = Scaled<Scalar<A>>;
  using Base::batch;
  TransducerNumbers<A> alphas;                 // (B, T, U + 1)
  TransducerNumbers<A> betas, blanks, labels;  // (B, 2, U + 1), (B, U + 1) twice
  const A* losses;
  A *to_blank, *to_label;  // (B, T, U + 1)

  FUSEDRNN_DEVICE void operator()(Block& block, Index b) const {
    if (!(losses[b] < A(INFINITY))) {
      const A value = losses[b] == losses[b] ? A(0) : losses[b];
      return block.each([&](int thread) {
        for (Index n = batch.cell(b, 0, 0) + thread; n < batch.cell(b + 1, 0, 0); n += block.threads())
          to_blank[n] = to_label[n] = value;
      });
    }
    A* const values = static_cast<A*>(block.shared());
    for (Index d = Base::diagonals(b) - 1; d >= 0; --d) {
      block.each([&](int thread) {
        A most = 2 * kExponentOfZero<A>;
        // One loop over all three would take more registers than a thread has.
        Base::own(block, thread, b, d, [&](Index t, Index u) { go_on_by_blank(b, t, u); });
        Base::own(block, thread, b, d, [&](Index t, Index u) { go_on_by_label(b, t, u); });
        Base::own(block, thread, b, d, [&](Index t, Index u) { most = larger_of(retreat(b, t, u), most); });
        values[thread] = most;
      });
      reduce(block, values, Largest<A>());
      const Scalar<A> exponent(values[0]);
      block.each([&](int) {});  // all have read it
      block.each([&](int thread) {
        A sum = 0;
        Base::own(block, thread, b, d, [&](Index, Index u) { sum += at_exponent(b, u, exponent); });
        values[thread] = sum;
      });
      reduce(block, values, Sum<A>());
      const A factor = A(1) / values[0];
      block.each([&](int thread) {
        Base::own(block, thread, b, d, [&](Index t, Index u) {
          to_blank[batch.cell(b, t, u)] = blanks.get(of_label(b, u)).mantissa.value * factor;
          to_label[batch.cell(b, t, u)] = labels.get(of_label(b, u)).mantissa.value * factor;
        });
      });
    }
  }

 private:
  FUSEDRNN_INLINE static A larger_of(A a, A b) { return a > b ? a : b; }
  FUSEDRNN_INLINE Index of_label(Index b, Index u) const { return b * batch.width() + u; }
  FUSEDRNN_INLINE Index of_beta(Index b, Index d, Index u) const { return (b * 2 + d % 2) * batch.width() + u; }

  // How probable all ways on from a cell are that begin with a blank, with the label.
  FUSEDRNN_DEVICE void go_on_by_blank(Index b, Index t, Index u) const {
    const bool last = t == batch.steps_of(b) - 1;
    const Number after = !last                     ? betas.get(of_beta(b, t + u + 1, u))
                         : u == batch.length_of(b) ? Base::one()
                                                   : Number::zero();
    blanks.set(of_label(b, u), Base::blank(batch.cell(b, t, u)) * after);
  }
  FUSEDRNN_DEVICE void go_on_by_label(Index b, Index t, Index u) const {
    const bool last = u == batch.length_of(b);
    labels.set(of_label(b, u),
               last ? Number::zero() : Base::label(batch.cell(b, t, u)) * betas.get(of_beta(b, t + u + 1, u + 1)));
  }
  // The backward variable of a cell, and what its paths account for; the larger exponent of these.
  FUSEDRNN_DEVICE A retreat(Index b, Index t, Index u) const {
    const Number by_blank = blanks.get(of_label(b, u)), by_label = labels.get(of_label(b, u));
    Number beta = by_blank + by_label;
    if ((t + u) % kTransducerNormalise == 0) beta = beta.normalised();
    betas.set(of_beta(b, t + u, u), beta);
    const Number alpha = alphas.get(batch.cell(b, t, u));
    const Number through_blank = by_blank * alpha, through_label = by_label * alpha;
    blanks.set(of_label(b, u), through_blank);
    labels.set(of_label(b, u), through_label);
    return larger_of(through_blank.exponent.value, through_label.exponent.value);
  }
  // Brings what a cell's paths account for to one exponent; its sum.
  FUSEDRNN_DEVICE A at_exponent(Index b, Index u, Scalar<A> exponent) const {
    const Scalar<A> blank = blanks.get(of_label(b, u)).at(exponent), label = labels.get(of_label(b, u)).at(exponent);
    blanks.memory[of_label(b, u)] = blank.value;
    labels.memory[of_label(b, u)] = label.value;
    return (blank + label).value;
  }
};

}  // namespace
}  // namespace fusedrnn
