// A thread's place in a call: its team, its share of the work, and when to stop.
#pragma once
#include "common/arguments.h"
#include "cpu/runtime/parallel.h"

namespace fusedrnn {

// How a direction's threads divide a step: row_parts x unit_parts of them in a grid.
struct Split {
  int row_parts = 1;
  int unit_parts = 1;
  FUSEDRNN_INLINE int threads() const { return row_parts * unit_parts; }
};

struct Worker {
  int thread;   // within the group
  Split split;  // of the group
  Group* group;
  Barrier* row_barrier;        // threads of the same rows
  const Interrupt* interrupt;  // asked by this thread, or null
  std::atomic<bool>* stop;     // shared by all groups of the call
  Index unlooked = 0;          // work since this thread last looked at the interrupt

  FUSEDRNN_INLINE int threads() const { return split.threads(); }
  FUSEDRNN_INLINE int row_part() const { return thread / split.unit_parts; }
  FUSEDRNN_INLINE int unit_part() const { return thread % split.unit_parts; }
  FUSEDRNN_INLINE void meet() { group->barrier.wait(threads()); }
  FUSEDRNN_INLINE void meet_row() { row_barrier->wait(split.unit_parts); }

  // Asks no more once it stops: a second signal's handler would run with the first one's exception pending.
  FUSEDRNN_INLINE bool stopped() {
    if (stop->load(std::memory_order_relaxed)) return true;
    const bool asked = interrupt && interrupt->asked(interrupt->context);
    if (asked) stop->store(true, std::memory_order_relaxed);
    return asked;
  }
  // Within a chunk, after some `work` (multiply-adds of 16): whether to skip what is left of it. Looks at the interrupt
  // every few milliseconds only. All barriers are still to be met, and what is skipped is never used: the next go_on
  // ends the call.
  FUSEDRNN_INLINE bool skip(Index work) {
    constexpr Index kLookAfter = Index(1) << 22;
    unlooked += work;
    if (unlooked < kLookAfter) return stop->load(std::memory_order_relaxed);
    unlooked = 0;
    return stopped();
  }

  // Between chunks of time: all threads of the group go on, or all stop.
  FUSEDRNN_INLINE bool go_on(Index chunk) {
    const bool stopping = stopped();
    if (thread == 0) group->stop[chunk & 1] = stopping;
    meet();
    return !group->stop[chunk & 1];
  }
};

// The part-th of so many parts of [0, count).
FUSEDRNN_INLINE Range part_of(Index count, Index part, Index parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

// Positions of one row part: as many steps to run in each, whatever the lengths.
static inline Range rows_of(const Schedule& schedule, Index part, Index parts) {
  const Index steps = schedule.steps;
  if (parts == 1 || steps == 0 || schedule.offset[steps] == steps * schedule.rows)
    return part_of(schedule.rows, part, parts);
  const Range work = part_of(schedule.offset[steps], part, parts);
  Range rows = {0, 0};
  Index seen = 0;
  for (Index p = 0; p < schedule.rows; seen += schedule.length[p++]) {
    if (seen < work.first) rows.first = p + 1;
    if (seen < work.last) rows.last = p + 1;
  }
  if (part == parts - 1) rows.last = schedule.rows;
  return {rows.first, larger(rows.first, rows.last)};
}

}  // namespace fusedrnn
