// Weights and rows rearranged into the order in which the micro-kernel reads them.
#pragma once
#include "common/arguments.h"
#include "cpu/simd/storage.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Elements of the packed weight_hh before a phase.
inline Index phase_start(const CellTraits& traits, int phase, Index blocks, Index inner) {
  Index start = 0;
  for (int earlier = 0; earlier < phase; ++earlier) start += blocks * traits.recurrent[earlier].count * inner * kBlock;
  return start;
}

// `count` <= 16 elements and zeros after them.
template <class From, class To>
inline void copy_padded(const From* from, Index count, To* to) {
  constexpr Index lanes = Vec<Accumulator<From>>::lanes;
  for (Index u = 0; u < kBlock; u += lanes)
    store(load_partial(from + u, static_cast<int>(larger(0, smaller(lanes, count - u)))), to + u);
}

template <class From, class To>
inline void copy_unpadded(const From* from, Index count, To* to) {
  constexpr Index lanes = Vec<Accumulator<From>>::lanes;
  for (Index u = 0; u < count; u += lanes)
    store_partial(load(from + u), to + u, static_cast<int>(smaller(lanes, count - u)));
}

template <class To>
inline void clear(To* to, Index count) {
  for (Index i = 0; i < count; ++i) to[i] = To{};
}

// `lanes` rows of a weight matrix, `inner` apart, become one column of vectors: vector k of `packed`, 16 apart, holds
// their element k. Whole: all rows are there and `count` is a vector's lanes, without tests, which took half the time.
template <bool Whole, class T, class Operand>
FUSEDRNN_INLINE void pack_square(const T* weight, Index inner, Index rows, int count, Operand* packed) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  V lines[V::lanes];
  for (int u = 0; u < V::lanes; ++u) {
    if constexpr (Whole)
      lines[u] = load(weight + u * inner);
    else
      lines[u] = u < rows ? load_partial(weight + u * inner, count) : V(A(0));
  }
  transpose<A>(lines);
  for (int i = 0; i < (Whole ? V::lanes : count); ++i) store(lines[i], packed + i * kBlock);
}

// Weights for micro-kernels that read their right operand in blocks of 16 columns, step after step.
template <class Operand>
struct BlockPacking {
  // Forward: 16 rows of a weight matrix (columns contiguous, `inner` of them) become one block [inner][16]. Rows past
  // `rows` read as zero.
  template <class T>
  static void pack_forward(const T* weight, Index inner, Index rows, Operand* packed) {
    constexpr Index lanes = Vec<Accumulator<T>>::lanes;
    for (Index first = 0; first < kBlock; first += lanes)
      for (Index k = 0; k < inner; k += lanes) {
        const T* from = weight + first * inner + k;
        Operand* to = packed + k * kBlock + first;
        if (rows - first >= lanes && inner - k >= lanes)
          pack_square<true>(from, inner, lanes, lanes, to);
        else
          pack_square<false>(from, inner, rows - first, static_cast<int>(smaller(lanes, inner - k)), to);
      }
  }

  // Backward: `count` <= 4 blocks of 16 columns of the weight matrix, from `first_block` on, read along the gate
  // gradients: the inner dimension runs over the window's slots, unit blocks, and the 16 units. Blocks lie
  // packed_stride apart. Several at once, so that a visit to a row of the matrix reads more than one cache line. Units
  // before first_unit are left out.
  template <class T>
  static void pack_backward(const T* weight, Index columns, Index first_block, Index count, Index hidden,
                            const Window& window, Operand* packed, Index packed_stride, Index first_unit = 0) {
    const Index first = first_block * kBlock;
    for (int slot = 0; slot < window.count; ++slot) {
      packed += first_unit * kBlock;
      for (Index unit = first_unit; unit < padded(hidden); ++unit, packed += kBlock) {
        const T* row = weight + (window.gate[slot] * hidden + unit) * columns + first;
        for (Index i = 0; i < count; ++i) {
          if (unit < hidden)
            copy_padded(row + i * kBlock, smaller(kBlock, columns - first - i * kBlock), packed + i * packed_stride);
          else
            clear(packed + i * packed_stride, kBlock);
        }
      }
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
