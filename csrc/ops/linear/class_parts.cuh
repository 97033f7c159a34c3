// A softmax's normaliser over the outputs of a linear map on a device, in parts: many threads have a row.
#pragma once
#include <cmath>

#include "common/number.h"
#include "cuda/runtime/backend.h"

namespace fusedrnn {
namespace {

constexpr Index kClassParts = 128;  // partial maxima and sums of a row

template <class Real>
FUSEDRNN_INLINE Real not_a_number() {
  return Real(NAN);
}

// Running maximum and sum of exponentials of every kClassParts-th class: neighbouring threads read neighbours.
template <class T>
struct ClassPart {
  using A = Accumulator<T>;
  const A* logits;  // (rows, classes), without bias
  const T* bias;
  Index classes;
  A *maxima, *sums;  // (rows, kClassParts)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index part) const {
    A maximum = -A(INFINITY), sum = 0;
    for (Index v = part; v < classes; v += kClassParts) {
      const A value = logits[r * classes + v] + (bias ? widen(bias[v]) : A(0));
      if (value > maximum) {
        sum = sum * std::exp(maximum - value) + A(1);
        maximum = value;
      } else if (!(value == -A(INFINITY))) {
        sum += std::exp(value - maximum);
      }
    }
    maxima[r * kClassParts + part] = maximum;
    sums[r * kClassParts + part] = sum;
  }
};

}  // namespace
}  // namespace fusedrnn
