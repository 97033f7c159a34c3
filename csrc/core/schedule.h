// Builds the row lists that drivers follow; see Schedule.
#pragma once
#include <vector>

#include "core/arguments.h"

namespace fusedrnn {

// Owns what the schedules of both directions point to: sorted positions, active rows per step, and a copy of the reset
// mask, so that a tape does not depend on the caller's arrays.
class RowLists {
 public:
  // lengths: (rows,) or null for `steps` each; reset: null, or reset(t, b) at reset[t * reset_time + b * reset_row].
  RowLists(Index steps, Index rows, const std::int64_t* lengths, const bool* reset, Index reset_time, Index reset_row);
  // A packed sequence: step t has active[t] rows, at least one and never growing.
  RowLists(Index steps, const std::int64_t* active);

  Schedule schedule(bool reverse) const;
  Index steps() const { return steps_; }
  Index rows() const { return rows_; }
  Index packed_rows() const { return offset_.back(); }
  // Whether every row runs at every step of so many, none from zero in between.
  bool whole(Index steps) const { return packed_rows() == steps * rows_ && reset_.empty(); }
  // (steps + 1,) where each step's rows begin in an array of the packed rows alone; null where arrays have padding.
  const Index* starts() const { return packed_ ? offset_.data() : nullptr; }
  std::size_t bytes() const;

 private:
  Index steps_, rows_;
  std::vector<Index> active_, offset_, row_, length_;
  std::vector<unsigned char> reset_;
  bool packed_ = false;
};

}  // namespace fusedrnn
