// Left operands of the micro-kernel of bfloat16, read a run of pairs at a time. Each has
//   run              pairs of a run
//   right_jump       pairs from the end of a run's right operand to the next one's
//   at(m, p)         the first element of pair p of the run in row m
//   second(m)        how far the second one lies from it
//   next_run()
// Their elements are those of the caller's arrays, or widened already.
#pragma once
#include "cpu/gemm/product.h"
#include "cpu/simd/word.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr Index kGroupPairs = kPairGroup / 2;
// Elements of 16 columns of a pair of steps.
constexpr Index kPairBlock = 2 * kBlock;

// Rows at pointers of their own.
template <class L, int Rows>
struct PairsOfRows {
  static constexpr Index run = kGroupPairs, right_jump = 0, second = 1;
  const L* row[Rows];
  PairsOfRows(const L* const* rows, Index first_step) {
    for (int m = 0; m < Rows; ++m) row[m] = rows[m] + first_step;
  }
  FUSEDRNN_INLINE const L* at(int m, Index p) const { return row[m] + 2 * p; }
  FUSEDRNN_INLINE void next_run() {
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) row[m] += kPairGroup;
  }
};

// Runs of 16 steps, in each of which the rows lie one after the other.
template <class L, int Rows>
struct PairsOfRuns {
  static constexpr Index run = kBlock / 2, right_jump = 0, second = 1;
  const L* first;  // row 0 of the first run
  Index stride;    // from one run to the next
  FUSEDRNN_INLINE const L* at(int m, Index p) const { return first + m * kBlock + 2 * p; }
  FUSEDRNN_INLINE void next_run() { first += stride; }
};

// Columns of rows, the groups of rows from the last to the first: the transposed product of the weight gradients. Rows
// that are widened lie one after the other, others in pairs as the right operand's do.
template <class L>
struct PairsOfColumns {
  static constexpr bool widened = std::is_same_v<L, float>;
  static constexpr Index run = kGroupPairs, right_jump = -2 * kGroupPairs, second = widened ? kBlock : 1;
  static constexpr Index column = widened ? 1 : 2;  // from one to the next
  const L* group;
  FUSEDRNN_INLINE const L* at(int m, Index p) const { return group + p * kPairBlock + m * column; }
  FUSEDRNN_INLINE void next_run() { group -= kPairGroup * kBlock; }
};

// An element of a pair, in every lane.
template <int kHalf, class Left>
FUSEDRNN_INLINE Vec<float> left_half(const Left& left, int m, Index p) {
  const auto* at = left.at(m, p);
  if constexpr (std::is_same_v<decltype(at), const Bfloat16*>)
    return half_of<kHalf>(word_everywhere(at));
  else
    return Vec<float>(at[kHalf * Left::second]);
}

template <int Rows, class L>
FUSEDRNN_INLINE PairsOfRows<L, Rows> pairs_of(const RowPointers<L>& pointers) {
  return PairsOfRows<L, Rows>(pointers.row, pointers.first_step);
}
template <int Rows, class L>
FUSEDRNN_INLINE PairsOfRuns<L, Rows> pairs_of(const RunRows<L>& rows) {
  return {rows.first, rows.stride};
}
template <int Rows, class L>
FUSEDRNN_INLINE PairsOfColumns<L> pairs_of(const PairsOfColumns<L>& columns) {
  return columns;
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
