// Lengths and resets: which time a step of a row is, and whether it enters from zero. On a device nobody sorts rows,
// and the host does not know device lengths: every row takes part in every step, and past its length does nothing.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {
namespace {

struct Steps {
  Index steps, rows;
  const std::int64_t* lengths;  // (B,), in [0, steps], or null
  const bool* reset;            // (T, B) or null
  bool reversed;                // of one direction: it runs from the end

  FUSEDRNN_INLINE Index length(Index row) const { return lengths ? lengths[row] : steps; }
  FUSEDRNN_INLINE bool reverse(Index direction) const { return direction == 1 || reversed; }
  // A step past the length n is the time of the same number in both directions: there is padding.
  FUSEDRNN_INLINE Index time(Index direction, Index step, Index n) const {
    return reverse(direction) && step < n ? n - 1 - step : step;
  }
  // Whether the row enters a step that it runs from zero instead of from its previous state.
  FUSEDRNN_INLINE bool cut(Index direction, Index step, Index row, Index n) const {
    if (!reset || (reverse(direction) && step == 0)) return false;
    return reset[(time(direction, step, n) + (reverse(direction) ? 1 : 0)) * rows + row];
  }
};

}  // namespace
}  // namespace fusedrnn
