// Softmax over rows: y_i = exp(x_i - max x) / sum of exp(x_j - max x); dx_i = y_i (dy_i - sum of dy_j y_j). Sixteen
// partial results at a time on every ISA, then one fixed order over the sixteen, so that a row's result depends on it
// alone.
#pragma once
#include "cpu/runtime/worker.h"
#include "cpu/simd/rows.h"
#include "ops/softmax/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class Softmax {
  using V = Vec<Real>;

 public:
  Softmax(const SoftmaxArguments<Real>& arguments, Worker& worker) : a(arguments), w(worker) {}

  void forward() {
    each_row([this](Index n) { forward_row(a.x + n * a.columns, a.columns, a.out + n * a.columns); });
  }
  void backward() {
    each_row(
        [this](Index n) { backward_row(a.y + n * a.columns, a.dy + n * a.columns, a.columns, a.out + n * a.columns); });
  }

 private:
  const SoftmaxArguments<Real>& a;
  Worker& w;

  template <class Row>
  void each_row(const Row& row) {
    constexpr Index kWork = 4;  // an element's, in multiply-adds of 16
    const Range mine = part_of(a.rows, w.thread, w.threads());
    for (Index n = mine.first; n < mine.last && !w.skip(a.columns * kWork); ++n) row(n);
  }

  static void forward_row(const Real* x, Index columns, Real* y) {
    const V maximum(row_maximum(x, columns));
    Partials<Real> partial(Real(0));
    each_vector(x, columns, -Real(__builtin_inf()), [&](Index k, Index first, int count, V value) {
      const V power = exp(value - maximum);
      partial.part[k] += power;
      power.store_partial(y + first, count);
    });
    const V sum(partial.sum());
    each_vector(y, columns, Real(0),
                [&](Index, Index first, int count, V power) { (power / sum).store_partial(y + first, count); });
  }

  static void backward_row(const Real* y, const Real* dy, Index columns, Real* dx) {
    Partials<Real> partial(Real(0));
    each_vector(y, columns, Real(0), [&](Index k, Index first, int count, V value) {
      partial.part[k] = fma(V::load_partial(dy + first, count), value, partial.part[k]);
    });
    const V sum(partial.sum());
    each_vector(y, columns, Real(0), [&](Index, Index first, int count, V value) {
      (value * (V::load_partial(dy + first, count) - sum)).store_partial(dx + first, count);
    });
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
