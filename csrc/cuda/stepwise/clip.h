// The norm over all gradients at once, in double, and their scaling to at most a limit.
#pragma once
#include <cmath>

#include "cuda/runtime/backend.h"

namespace fusedrnn {
namespace {

constexpr Index kNormParts = 1024;  // partial sums of an array

template <class T>
struct SquaresPart {
  const T* data;
  Index size;
  double* partial;  // (kNormParts,)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index part) const {
    double sum = 0;
    for (Index i = part; i < size; i += kNormParts) sum += double(widen(data[i])) * double(widen(data[i]));
    partial[part] = sum;
  }
};
struct JoinSquares {
  const double* partial;
  Index count, columns;  // adds every columns-th of `count`
  double* to;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index part) const {
    double sum = 0;
    for (Index i = part; i < count; i += columns) sum += partial[i];
    to[part] = columns == 1 ? std::sqrt(sum) : sum;
  }
};
template <class T>
struct Scale {
  T* data;
  const double* norm;
  double limit;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index i) const {
    if (!(*norm <= limit)) data[i] = narrow<T>(widen(data[i]) * static_cast<Accumulator<T>>(limit / *norm));
  }
};

}  // namespace
}  // namespace fusedrnn
