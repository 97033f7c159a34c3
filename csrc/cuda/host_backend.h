// The backend of the tests: plain loops over host memory.
#pragma once
#include <algorithm>
#include <vector>

#include "cuda/backend.h"
#include "cuda/engine.h"

namespace fusedrnn {

// Whether loops run from the last element to the first, so that a test sees what depends on the order; and whether a
// graph is said to be captured. Set by the module's functions of these names.
extern bool host_reversed, host_capturing;

namespace {

class Backend {
 public:
  static constexpr std::size_t kGemmBytes = 0;

  Backend(const Place&, void*, bool tf32) : tf32_(tf32) {}

  template <class Function>
  void for_each(Index outer, Index rows, Index columns, const Function& f) {
    const Index count = outer * rows * columns;
    for (Index i = 0; i < count; ++i) {
      const Index at = host_reversed ? count - 1 - i : i;
      f(at / columns / rows, at / columns % rows, at % columns);
    }
  }

  template <class T>
  void gemm(const Gemm<T>& g) {
    using A = Accumulator<T>;
    std::vector<A> right(static_cast<std::size_t>(g.k * g.n)), row(static_cast<std::size_t>(g.n));
    for (Index i = 0; i < g.batch; ++i) {
      const T *a = g.a + i * g.a_batch, *b = g.b + i * g.b_batch;
      for (Index k = 0; k < g.k; ++k)
        for (Index n = 0; n < g.n; ++n)
          right[k * g.n + n] = operand<T>(g.b_transposed ? b[n * g.b_row + k] : b[k * g.b_row + n]);
      for (Index m = 0; m < g.m; ++m) {
        A* const c = g.c + i * g.c_batch + m * g.c_row;
        std::fill(row.begin(), row.end(), A(0));
        for (Index k = 0; k < g.k; ++k) {
          const A left = operand<T>(g.a_transposed ? a[k * g.a_row + m] : a[m * g.a_row + k]);
          const A* const values = right.data() + k * g.n;
          for (Index n = 0; n < g.n; ++n) row[n] += left * values[n];
        }
        for (Index n = 0; n < g.n; ++n) c[n] = g.add ? c[n] + row[n] : row[n];
      }
    }
  }

 private:
  bool tf32_;

  template <class T>
  Accumulator<T> operand(T value) const {
    if constexpr (sizeof(T) == 4) {
      if (tf32_) return float_of(rounded_off(bits_of(value), 13) << 13);
    }
    return widen(value);
  }
};

}  // namespace
}  // namespace fusedrnn
