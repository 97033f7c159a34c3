// Softmax over rows: y_i = exp(x_i - max x) / sum of exp(x_j - max x); dx_i = y_i (dy_i - sum of dy_j y_j). Sixteen
// partial results at a time on every ISA, then one fixed order over the sixteen, so that a row's result depends on it
// alone.
#pragma once
#include "cpu/gemm/pack.h"
#include "cpu/runtime/worker.h"
#include "cpu/simd/activations.h"
#include "ops/softmax/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class Softmax {
  using V = Vec<Real>;
  static constexpr Index kVectors = kBlock / V::lanes;

 public:
  Softmax(const SoftmaxArguments<Real>& arguments, Worker& worker) : a(arguments), w(worker) {}

  void forward() {
    each_row([this](Index n) { forward_row(a.x + n * a.columns, a.out + n * a.columns); });
  }
  void backward() {
    each_row([this](Index n) { backward_row(a.y + n * a.columns, a.dy + n * a.columns, a.out + n * a.columns); });
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

  // Calls use(k, vector k of 16 elements from `first` on), those past the row's end being `absent`.
  template <class Use>
  void each_vector(const Real* row, Index first, Real absent, const Use& use) const {
    for (Index k = 0; k < kVectors; ++k) {
      const Index left = larger(0, smaller(V::lanes, a.columns - first - k * V::lanes));
      V value = V::load_partial(row + first + k * V::lanes, static_cast<int>(left));
      if (left < V::lanes) {
        Real lanes[V::lanes];
        value.store(lanes);
        for (Index u = left; u < V::lanes; ++u) lanes[u] = absent;
        value = V::load(lanes);
      }
      use(k, value);
    }
  }
  void store(V value, Real* row, Index first, Index k) const {
    const Index left = a.columns - first - k * V::lanes;
    if (left > 0) value.store_partial(row + first + k * V::lanes, static_cast<int>(smaller(V::lanes, left)));
  }

  static Real sum_of(const V* partial) {
    Real lane[kBlock], sum = Real(0);
    for (Index k = 0; k < kVectors; ++k) partial[k].store(lane + k * V::lanes);
    for (Index u = 0; u < kBlock; ++u) sum += lane[u];
    return sum;
  }
  // A nan is left out, and shows in the sum.
  Real maximum_of(const Real* row) const {
    const Real lowest = -Real(__builtin_inf());
    V partial[kVectors];
    for (Index k = 0; k < kVectors; ++k) partial[k] = V(lowest);
    for (Index first = 0; first < a.columns; first += kBlock)
      each_vector(row, first, lowest, [&](Index k, V value) { partial[k] = at_least(partial[k], value); });
    Real lane[kBlock], maximum = lowest;
    for (Index k = 0; k < kVectors; ++k) partial[k].store(lane + k * V::lanes);
    for (Index u = 0; u < kBlock; ++u) maximum = lane[u] > maximum ? lane[u] : maximum;
    return maximum;
  }

  void forward_row(const Real* x, Real* y) const {
    const Real lowest = -Real(__builtin_inf());
    const V maximum(maximum_of(x));
    V partial[kVectors];
    for (Index k = 0; k < kVectors; ++k) partial[k] = V(Real(0));
    for (Index first = 0; first < a.columns; first += kBlock)
      each_vector(x, first, lowest, [&](Index k, V value) {
        const V power = exp(value - maximum);
        partial[k] += power;
        store(power, y, first, k);
      });
    const V sum(sum_of(partial));
    for (Index first = 0; first < a.columns; first += kBlock)
      each_vector(y, first, Real(0), [&](Index k, V power) { store(power / sum, y, first, k); });
  }

  void backward_row(const Real* y, const Real* dy, Real* dx) const {
    V partial[kVectors], gradient[kVectors];
    for (Index k = 0; k < kVectors; ++k) partial[k] = V(Real(0));
    for (Index first = 0; first < a.columns; first += kBlock) {
      each_vector(dy, first, Real(0), [&](Index k, V value) { gradient[k] = value; });
      each_vector(y, first, Real(0), [&](Index k, V value) { partial[k] = fma(gradient[k], value, partial[k]); });
    }
    const V sum(sum_of(partial));
    for (Index first = 0; first < a.columns; first += kBlock) {
      each_vector(dy, first, Real(0), [&](Index k, V value) { gradient[k] = value - sum; });
      each_vector(y, first, Real(0), [&](Index k, V value) { store(value * gradient[k], dx, first, k); });
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
