// Builds the row lists that drivers follow; see Schedule.
#pragma once
#include <vector>

#include "common/arguments.h"

namespace fusedrnn {

// Owns what the schedules of both directions point to, so that a tape does not depend on the caller's arrays.
class RowLists {
 public:
  // lengths: (rows,) or null for `steps` each; reset: cuts the link between a time and the one before; mask: the times
  // that are not skipped. Without rows there is no step to list.
  RowLists(Index steps, Index rows, const std::int64_t* lengths, const Flags& reset, const Flags& mask);
  // A packed sequence: step t has active[t] rows, at least one and never growing.
  RowLists(Index steps, const std::int64_t* active);

  Schedule schedule(bool reverse) const;
  Index steps() const { return steps_; }
  Index rows() const { return rows_; }
  Index packed_rows() const { return offset_.back(); }
  // Whether every row runs at every step of so many, none from zero in between.
  bool whole(Index steps) const { return packed_rows() == steps * rows_ && cuts_.empty(); }
  // (steps + 1,) where each step's rows begin in an array of the packed rows alone; null where arrays have padding.
  const Index* starts() const { return packed_ ? offset_.data() : nullptr; }
  std::size_t bytes() const;

 private:
  Index steps_, rows_;
  std::vector<Index> active_, offset_, row_, length_;
  std::vector<unsigned char> cuts_, resets_;
  std::vector<Index> times_, extent_, repeats_[2];  // with a mask; the last for each direction
  bool packed_ = false;

  void count_active();
  void list_times(const std::vector<Index>& extent, const Flags& mask);
  void list_cuts(const std::vector<Index>& extent, const Flags& reset, const Flags& mask);
  void list_repeats(bool reverse, const Flags& reset, const Flags& mask);
  void list_resets(Index steps, const Flags& reset);
};

}  // namespace fusedrnn
