// Weights and rows rearranged into the order in which the micro-kernel reads them.
#pragma once
#include "core/arguments.h"
#include "cpu/vec.h"

namespace fusedrnn {
namespace {

// Forward: 16 rows of a weight matrix (columns contiguous, `inner` of them) become one block [inner][16]. Rows past
// `rows` read as zero.
template <class Real>
inline void pack_forward(const Real* weight, Index inner, Index rows, Real* packed) {
  using V = Vec<Real>;
  for (Index first = 0; first < kBlock; first += V::lanes)
    for (Index k = 0; k < inner; k += V::lanes) {
      const int count = static_cast<int>(smaller(V::lanes, inner - k));
      V lines[V::lanes];
      for (int u = 0; u < V::lanes; ++u)
        lines[u] = first + u < rows ? V::load_partial(weight + (first + u) * inner + k, count) : V(Real(0));
      transpose<Real>(lines);
      for (int i = 0; i < count; ++i) lines[i].store(packed + (k + i) * kBlock + first);
    }
}

// `count` <= 16 elements and zeros after them.
template <class Real>
inline void copy_padded(const Real* from, Index count, Real* to) {
  using V = Vec<Real>;
  for (Index u = 0; u < kBlock; u += V::lanes)
    V::load_partial(from + u, static_cast<int>(larger(0, smaller(V::lanes, count - u)))).store(to + u);
}

template <class Real>
inline void copy_unpadded(const Real* from, Index count, Real* to) {
  using V = Vec<Real>;
  for (Index u = 0; u < count; u += V::lanes)
    V::load(from + u).store_partial(to + u, static_cast<int>(smaller(V::lanes, count - u)));
}

template <class Real>
inline void clear(Real* to, Index count) {
  for (Index i = 0; i < count; ++i) to[i] = Real(0);
}

// Backward: block `column_block` of 16 columns of the weight matrix, read along the gate gradients: the inner dimension
// runs over the window's slots, unit blocks, and the 16 units.
template <class Real>
inline void pack_backward(const Real* weight, Index columns, Index column_block, Index hidden, const Window& window,
                          Real* packed) {
  const Index count = smaller(kBlock, columns - column_block * kBlock);
  for (int slot = 0; slot < window.count; ++slot)
    for (Index block = 0; block < blocks_of(hidden); ++block)
      for (Index u = 0; u < kBlock; ++u, packed += kBlock) {
        const Index unit = block * kBlock + u;
        if (unit < hidden)
          copy_padded(weight + (window.gate[slot] * hidden + unit) * columns + column_block * kBlock, count, packed);
        else
          clear(packed, kBlock);
      }
}

}  // namespace
}  // namespace fusedrnn
