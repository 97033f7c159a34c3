#include "cpu/layers/schedule.h"

#include <algorithm>
#include <numeric>

namespace fusedrnn {

static_assert(sizeof(bool) == 1, "masks are read as NumPy's one-byte bools");

namespace {

// The caller's flags as they are now: they are read several times, and another thread may write them meanwhile.
struct OwnFlags {
  std::vector<unsigned char> bytes;
  Flags flags;

  OwnFlags(const Flags& from, Index steps, Index rows) {
    if (!from.data) return;
    bytes.resize(std::max<Index>(steps * rows, 1));
    for (Index t = 0; t < steps; ++t)
      for (Index b = 0; b < rows; ++b) bytes[t * rows + b] = from.at(t, b);
    flags = {bytes.data(), rows, 1};
  }
};

// How many steps each row of the batch runs of its first `extent` ones.
std::vector<Index> count_steps(const std::vector<Index>& extent, const Flags& mask) {
  if (!mask.data) return extent;
  std::vector<Index> counts(extent.size(), 0);
  for (std::size_t b = 0; b < extent.size(); ++b)
    for (Index t = 0; t < extent[b]; ++t) counts[b] += mask.at(t, static_cast<Index>(b));
  return counts;
}

}  // namespace

RowLists::RowLists(Index steps, Index rows, const std::int64_t* lengths, const Flags& resets, const Flags& kept_steps)
    : steps_(rows > 0 ? steps : 0), rows_(rows), row_(rows), length_(rows, steps) {
  const OwnFlags own_reset(resets, steps_, rows), own_mask(kept_steps, steps_, rows);
  const Flags &reset = own_reset.flags, &mask = own_mask.flags;
  std::iota(row_.begin(), row_.end(), Index(0));
  std::vector<Index> extent(rows, steps);
  if (lengths) extent.assign(lengths, lengths + rows);
  const std::vector<Index> counts = count_steps(extent, mask);
  const bool skipping = counts != extent;
  if (lengths || skipping) {
    // Ties by row, in place of a stable sort: libstdc++'s takes its buffer from a function that clang warns of.
    std::sort(row_.begin(), row_.end(),
              [&](Index a, Index b) { return counts[a] != counts[b] ? counts[a] > counts[b] : a < b; });
    for (Index p = 0; p < rows; ++p) length_[p] = counts[row_[p]];
    if (rows > 0) steps_ = length_[0];
  }
  count_active();
  const Flags kept = skipping ? mask : Flags();
  if (reset.data) list_cuts(extent, reset, kept);
  if (!skipping) return;
  list_times(extent, kept);
  for (const bool reverse : {false, true}) list_repeats(reverse, reset, kept);
  if (reset.data) list_resets(steps, reset);
}

void RowLists::count_active() {
  active_.resize(steps_);
  offset_.assign(steps_ + 1, 0);
  Index running = rows_;
  for (Index s = 0; s < steps_; ++s) {
    while (running > 0 && length_[running - 1] <= s) --running;
    active_[s] = running;
    offset_[s + 1] = offset_[s] + running;
  }
}

void RowLists::list_times(const std::vector<Index>& extent, const Flags& mask) {
  times_.resize(rows_ * steps_);
  extent_.resize(rows_);
  for (Index p = 0; p < rows_; ++p) {
    extent_[p] = extent[row_[p]];
    for (Index t = 0, k = 0; t < extent_[p]; ++t)
      if (mask.at(t, row_[p])) times_[p * steps_ + k++] = t;
  }
}

// Every reset belongs to the next time that runs, or to the end.
void RowLists::list_cuts(const std::vector<Index>& extent, const Flags& reset, const Flags& mask) {
  cuts_.resize((steps_ + 1) * rows_);
  for (Index p = 0; p < rows_; ++p)
    for (Index t = 0, k = 0; t < extent[row_[p]]; ++t) {
      cuts_[k * rows_ + p] |= reset.at(t, row_[p]);
      if (!mask.data || mask.at(t, row_[p])) ++k;
    }
}

void RowLists::list_repeats(bool reverse, const Flags& reset, const Flags& mask) {
  std::vector<Index>& repeats = repeats_[reverse];
  repeats.resize(rows_ * (steps_ + 1));
  for (Index p = 0; p < rows_; ++p) {
    const Index b = row_[p], last = extent_[p] - 1;
    Index* count = repeats.data() + p * (steps_ + 1);
    bool lasts = true;
    for (Index i = 0; i <= last; ++i) {
      const Index t = reverse ? last - i : i;
      if (reset.data && !(reverse && i == 0) && reset.at(reverse ? t + 1 : t, b)) lasts = false;
      if (mask.at(t, b)) {
        ++count;
        lasts = true;
      } else {
        *count += lasts;
      }
    }
  }
}

void RowLists::list_resets(Index steps, const Flags& reset) {
  resets_.resize(steps * rows_);
  for (Index t = 0; t < steps; ++t)
    for (Index p = 0; p < rows_; ++p) resets_[t * rows_ + p] = reset.at(t, row_[p]);
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
  schedule.cuts = cuts_.empty() ? nullptr : reinterpret_cast<const bool*>(cuts_.data());
  if (!extent_.empty()) {
    schedule.times = times_.data();
    schedule.extent = extent_.data();
    schedule.repeats = repeats_[reverse].data();
    schedule.resets = resets_.empty() ? nullptr : reinterpret_cast<const bool*>(resets_.data());
  }
  schedule.reverse = reverse;
  return schedule;
}

std::size_t RowLists::bytes() const {
  std::size_t bytes = cuts_.size() + resets_.size();
  for (const auto* list : {&active_, &offset_, &row_, &length_, &times_, &extent_, &repeats_[0], &repeats_[1]})
    bytes += list->size() * sizeof(Index);
  return bytes;
}

}  // namespace fusedrnn
