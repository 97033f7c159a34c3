#include "core/schedule.h"

#include <algorithm>
#include <numeric>

namespace fusedrnn {

static_assert(sizeof(bool) == 1, "the reset mask is read as NumPy's one-byte bools");

RowLists::RowLists(Index steps, Index rows, const std::int64_t* lengths, const bool* reset, Index reset_time,
                   Index reset_row)
    : steps_(steps), rows_(rows), row_(rows), length_(rows, steps) {
  std::iota(row_.begin(), row_.end(), Index(0));
  if (lengths) {
    // Ties by row, in place of a stable sort: libstdc++'s takes its buffer from a function that clang warns of.
    std::sort(row_.begin(), row_.end(),
              [&](Index a, Index b) { return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b; });
    for (Index p = 0; p < rows; ++p) length_[p] = lengths[row_[p]];
    steps_ = rows > 0 ? length_[0] : 0;
  }
  active_.resize(steps_);
  offset_.assign(steps_ + 1, 0);
  Index running = rows;
  for (Index s = 0; s < steps_; ++s) {
    while (running > 0 && length_[running - 1] <= s) --running;
    active_[s] = running;
    offset_[s + 1] = offset_[s] + running;
  }
  if (!reset) return;
  reset_.resize(steps * rows);
  for (Index t = 0; t < steps; ++t)
    for (Index b = 0; b < rows; ++b) reset_[t * rows + b] = reset[t * reset_time + b * reset_row];
}

RowLists::RowLists(Index steps, const std::int64_t* active)
    : steps_(steps), rows_(steps > 0 ? active[0] : 0), active_(active, active + steps), packed_(true) {
  row_.resize(rows_);
  std::iota(row_.begin(), row_.end(), Index(0));
  length_.assign(rows_, 0);
  offset_.assign(steps + 1, 0);
  for (Index s = 0; s < steps; ++s) {
    offset_[s + 1] = offset_[s] + active_[s];
    const Index ending = s + 1 < steps ? active_[s + 1] : 0;
    for (Index p = ending; p < active_[s]; ++p) length_[p] = s + 1;
  }
}

Schedule RowLists::schedule(bool reverse) const {
  Schedule schedule;
  schedule.steps = steps_;
  schedule.rows = rows_;
  schedule.active = active_.data();
  schedule.offset = offset_.data();
  schedule.row = row_.data();
  schedule.length = length_.data();
  schedule.reset = reset_.empty() ? nullptr : reinterpret_cast<const bool*>(reset_.data());
  schedule.reset_time = rows_;
  schedule.reset_row = 1;
  schedule.reverse = reverse;
  return schedule;
}

std::size_t RowLists::bytes() const {
  return (active_.size() + offset_.size() + row_.size() + length_.size()) * sizeof(Index) + reset_.size();
}

}  // namespace fusedrnn
