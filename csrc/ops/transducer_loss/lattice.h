// The lattice of a transducer: a path begins in cell (0, 0) and goes on from (t, u) by a blank to (t + 1, u) or by the
// next label to (t, u + 1), until a blank leads out of (T - 1, U). alpha(t, u) is the probability of all ways to a
// cell, beta(t, u) that of all ways on from it. Both are computed a diagonal t + u at a time, whose cells do not depend
// on each other, and are scaled numbers.
#pragma once
#include "cpu/simd/exponents.h"
#include "cpu/simd/rows.h"
#include "ops/transducer_loss/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class TransducerLattice {
  using V = Vec<Real>;
  using Number = Scaled<V>;
  static constexpr Index kLanes = V::lanes;
  // Diagonals after which mantissas are brought back to [1, 2): in between they stay within 2^-8 and 2^25.
  static constexpr Index kNormalise = 16;

  // Numbers of a diagonal by u: element -1 and those up to a vector past the last may be read.
  struct Line {
    Real *mantissa, *exponent;
    Number at(Index u) const { return load_scaled(mantissa + u, exponent + u); }
    void set(Index u, Number value) const { store_scaled(value, mantissa + u, exponent + u); }
  };

 public:
  TransducerLattice(const TransducerRow& row, const Real* log_blank, const Real* log_label, Real* workspace)
      : steps(row.steps), length(row.length), log_blank(log_blank), log_label(log_label), memory(workspace) {
    state = next_line(), blank = next_line(), label = next_line();
    gathered = memory + kBlock;
    memory += lattice_line(length);
  }

  // -log p.
  Real loss() {
    if (steps == 0) return length == 0 ? Real(0) : Real(__builtin_inf());
    begin(0);
    for (Index d = 0; d < diagonals(); ++d) advance(d);
    return minus_log_sum(state.mantissa[length], state.exponent[length], Real(0), kExponentOfZero<Real>);
  }

  // How probable it is that a path goes on from a cell by a blank, by the label, given that it is one of the targets';
  // their sum over a diagonal is 1. The loss is finite.
  void occupancies(Real* to_blank, Real* to_label) {
    begin(0);
    for (Index d = 0; d < diagonals(); ++d) {
      keep(d);
      advance(d);
    }
    begin(length);
    for (Index d = diagonals() - 1; d >= 0; --d) retreat(d, to_blank, to_label);
  }

 private:
  const Index steps, length;
  const Real *const log_blank, *const log_label;
  Real* memory;
  Line state;         // alphas of a diagonal, or betas
  Line blank, label;  // emissions of a diagonal's cells, and what becomes of them
  Real* gathered;

  Line next_line() {
    const Line line = {memory + kBlock, memory + lattice_line(length) + kBlock};
    memory += 2 * lattice_line(length);
    return line;
  }
  Index diagonals() const { return steps + length; }
  Range cells_of(Index d) const { return {larger(0, d - steps + 1), smaller(length, d) + 1}; }
  // The blocks of sixteen that hold a diagonal's cells, so that no sum depends on the width of a register. What the
  // other elements hold reaches no cell: their emissions are zero.
  Range blocks_at(Index d) const {
    const Range cells = cells_of(d);
    return {cells.first / kBlock * kBlock, padded(cells.last)};
  }
  template <class Use>
  FUSEDRNN_INLINE void each_vector_of(Range range, const Use& use) const {
    for (Index u = range.first; u < range.last; u += kLanes) use(u);
  }

  // A path is at cell u with certainty.
  void begin(Index u) const {
    for (const Line& line : {state, blank, label})
      for (Index i = -kBlock; i < lattice_line(length) - kBlock; i += kLanes) line.set(i, Number::zero());
    state.mantissa[u] = Real(1), state.exponent[u] = Real(0);
  }

  void emit(Index d, const Real* log_probs, const Line& line) const {
    const Range cells = cells_of(d), range = blocks_at(d);
    const Real* cell = log_probs + d * (length + 1);  // (d, 0); (d - u, u) lies u * length before
    for (Index u = range.first; u < cells.first; ++u) gathered[u] = -Real(__builtin_inf());
    for (Index u = cells.first; u < cells.last; ++u) gathered[u] = cell[-u * length];
    for (Index u = cells.last; u < range.last; ++u) gathered[u] = -Real(__builtin_inf());
    each_vector_of(range, [&](Index u) { line.set(u, scaled_exp(V::load(gathered + u))); });
  }

  // From the alphas of a diagonal to those of the next one.
  void advance(Index d) const {
    emit(d, log_blank, blank);
    emit(d, log_label, label);
    const Range range = blocks_at(d), next = blocks_at(d + 1);
    each_vector_of(range, [&](Index u) {
      const Number alpha = state.at(u);
      state.set(u, alpha * blank.at(u));
      label.set(u, alpha * label.at(u));
    });
    label.mantissa[range.first - 1] = Real(0), label.exponent[range.first - 1] = kExponentOfZero<Real>;
    const bool normalise = d % kNormalise == kNormalise - 1;
    each_vector_of({smaller(range.first, next.first), larger(range.last, next.last)}, [&](Index u) {
      const Number sum = state.at(u) + label.at(u - 1);
      state.set(u, normalise ? sum.normalised() : sum);
    });
  }

  Line kept(Index d) const {
    const Index size = lattice_diagonal(steps, length);
    Real* const at = memory + 2 * d * size - blocks_at(d).first;
    return {at, at + size};
  }
  void keep(Index d) const {
    const Line line = kept(d);
    each_vector_of(blocks_at(d), [&](Index u) { line.set(u, state.at(u)); });
  }

  // From the betas of the next diagonal to those of this one; writes its cells' occupancies.
  void retreat(Index d, Real* to_blank, Real* to_label) const {
    emit(d, log_blank, blank);
    emit(d, log_label, label);
    const Line alpha = kept(d);
    const Range range = blocks_at(d);
    const bool normalise = d % kNormalise == 0;
    Partials<Real> largest(kExponentOfZero<Real> * 2);
    each_vector_of(range, [&](Index u) {
      const Number by_blank = blank.at(u) * state.at(u), by_label = label.at(u) * state.at(u + 1);
      const Number beta = by_blank + by_label;
      state.set(u, normalise ? beta.normalised() : beta);
      blank.set(u, by_blank * alpha.at(u));
      label.set(u, by_label * alpha.at(u));
      V& exponent = largest.part[u / kLanes % Partials<Real>::kVectors];
      exponent = at_least(exponent, at_least(V::load(blank.exponent + u), V::load(label.exponent + u)));
    });
    const V exponent(largest.maximum());
    Partials<Real> total(Real(0));
    each_vector_of(range, [&](Index u) {
      const V by_blank = blank.at(u).at(exponent), by_label = label.at(u).at(exponent);
      total.part[u / kLanes % Partials<Real>::kVectors] += by_blank + by_label;
      by_blank.store(blank.mantissa + u);
      by_label.store(label.mantissa + u);
    });
    scatter(d, Real(1) / total.sum(), to_blank, to_label);
  }

  void scatter(Index d, Real factor, Real* to_blank, Real* to_label) const {
    const Range cells = cells_of(d);
    for (Index u = cells.first; u < cells.last; ++u) {
      const Index cell = d * (length + 1) - u * length;
      to_blank[cell] = blank.mantissa[u] * factor;
      to_label[cell] = label.mantissa[u] * factor;
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
