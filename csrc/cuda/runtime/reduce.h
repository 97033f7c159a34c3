// A block's threads put one number each together, in an order that never changes.
#pragma once
#include "cuda/runtime/backend.h"

namespace fusedrnn {
namespace {

// values[0] becomes that of all threads' values[thread], for a number of threads that is a power of 2: pair by pair.
template <class Real, class Join>
FUSEDRNN_DEVICE void reduce(Block& block, Real* values, const Join& join) {
  for (int width = block.threads() / 2; width > 0; width /= 2)
    block.each([&](int thread) {
      if (thread < width) values[thread] = join(values[thread], values[thread + width]);
    });
}

template <class Real>
struct Sum {
  FUSEDRNN_DEVICE Real operator()(Real a, Real b) const { return a + b; }
};
// A nan is passed over.
template <class Real>
struct Largest {
  FUSEDRNN_DEVICE Real operator()(Real a, Real b) const { return b > a ? b : a; }
};

}  // namespace
}  // namespace fusedrnn
