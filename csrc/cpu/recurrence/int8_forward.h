// The forward driver with weights of 8 bits: one direction of one layer over all its steps, for results alone. It
// follows the schedule as forward.h does, and gives the bits of step after step.
#pragma once
#include "cpu/recurrence/int8_step.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Cell>
class Int8Forward {
  static constexpr CellTraits traits = Cell::traits;
  static constexpr bool has_c = traits.states == 2;

 public:
  Int8Forward(const ForwardArguments<float>& arguments, const Int8Direction& direction, Worker& worker)
      : a(arguments),
        d(direction),
        w(worker),
        schedule(a.schedule),
        hidden(a.hidden_size),
        width(padded(hidden)),
        own_rows(rows_of(schedule, w.row_part(), w.split.row_parts)),
        own_blocks(part_of(blocks_of(hidden), w.unit_part(), w.split.unit_parts)),
        step_arguments(arguments_of_steps()),
        steps(step_arguments, d, w) {}

  void run() {
    stage_state();
    w.meet();
    for (Index first = 0, last, chunk = 0; first < schedule.steps; first = last, ++chunk) {
      last = chunk_end(first);
      if (!w.go_on(chunk)) return;
      project(first, last);
      for (Index s = first; s < last; ++s) step(s, schedule.offset[s] - schedule.offset[first]);
    }
  }

 private:
  const ForwardArguments<float>& a;
  const Int8Direction& d;
  Worker& w;
  const Schedule& schedule;
  const Index hidden, width;
  const Range own_rows, own_blocks;
  StepArguments<float> step_arguments;
  Int8Step<Cell> steps;

  StepArguments<float> arguments_of_steps() const {
    StepArguments<float> s = {};
    s.input_size = a.input_size;
    s.hidden_size = hidden;
    s.rows = schedule.rows;
    s.clip = a.clip;
    s.c = {a.carry.data, width};
    s.c_next = {a.carry.data, width};
    s.operand = static_cast<float*>(a.operand);
    s.kept = d.kept;
    return s;
  }
  Index chunk_end(Index first) const {
    Index last = first + 1;
    while (last < schedule.steps && schedule.offset[last + 1] - schedule.offset[first] <= a.chunk_rows) ++last;
    return last;
  }
  // Of this thread's rows, those that run at a step.
  Range running(Index s) const {
    return {own_rows.first, larger(own_rows.first, smaller(own_rows.last, schedule.active[s]))};
  }
  float* h_at(Index s) const { return static_cast<float*>(a.h) + (s & 1) * schedule.rows * width; }

  // Of a row: copies this thread's units, or zeros where there are none.
  void copy_units(const float* from, float* to) const {
    const Index first = own_blocks.first * kBlock, last = smaller(own_blocks.last * kBlock, hidden);
    if (from)
      copy(from + first, last - first, to + first);
    else
      clear(to + first, last - first);
  }
  FUSEDRNN_NOINLINE void stage_state() {
    for (Index p = own_rows.first; p < own_rows.last; ++p) {
      const Index b = schedule.row[p];
      const bool empty = schedule.length[p] == 0, cut = !empty && schedule.cut(0, p);
      copy_units(a.h0.data && !cut ? a.h0.at(b) : nullptr, h_at(0) + p * width);
      if (empty) copy_units(h_at(0) + p * width, a.hn.at(b));
      if constexpr (has_c) {
        copy_units(a.c0.data && !cut ? a.c0.at(b) : nullptr, a.carry.data + p * width);
        if (empty) copy_units(a.carry.data + p * width, a.cn.at(b));
      }
    }
  }

  // Bias and x . weight_ih for this thread's rows and blocks of the steps [first, last).
  void project(Index first, Index last) {
    Index count = 0;
    for (Index s = first; s < last; ++s)
      for (Index p = running(s).first; p < running(s).last; ++p)
        steps.keep_input(count++, a.x.at(schedule.time(s, p), schedule.row[p]));
    for (Index block = own_blocks.first; block < own_blocks.last; ++block) {
      if (w.skip(count * traits.input.count * a.input_size)) return;
      if (w.split.row_parts == 1) {  // then the rows of all steps lie side by side
        steps.project(block, 0, count, 0);
        continue;
      }
      for (Index s = first, done = 0; s < last; done += running(s).last - running(s).first, ++s)
        steps.project(block, done, running(s).last - running(s).first,
                      schedule.offset[s] - schedule.offset[first] + own_rows.first);
    }
  }

  void step(Index s, Index first_sum) {
    step_arguments.h = {h_at(s), width};
    step_arguments.h_next = {h_at(s + 1), width};
    // Alternating directions: what a step reads last is what the next one finds in the cache.
    steps.advance(running(s), own_blocks, s % 2 != 0, first_sum);
    for (Index p = running(s).first; p < running(s).last; ++p)
      for (Index block = own_blocks.first; block < own_blocks.last; ++block) deliver(s, p, block * kBlock);
    w.meet_row();
  }

  // Of a row's units of one block, after a step: to y, to the final state, and zeros where a reset follows.
  FUSEDRNN_NOINLINE void deliver(Index s, Index p, Index unit) const {
    const Index b = schedule.row[p], units = smaller(kBlock, hidden - unit);
    const bool last = s + 1 == schedule.length[p];
    float* h = h_at(s + 1) + p * width + unit;
    float* c = has_c ? a.carry.data + p * width + unit : nullptr;
    if (a.y.data) copy(h, units, a.y.at(schedule.time(s, p), b) + unit);
    if (last) {
      copy(h, units, a.hn.at(b) + unit);
      if (has_c) copy(c, units, a.cn.at(b) + unit);
    } else if (schedule.cut(s + 1, p)) {
      clear(h, units);
      if (has_c) clear(c, units);
    }
  }
  static void copy(const float* from, Index count, float* to) {
    if (count > 0) __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof *to);
  }
  static void clear(float* to, Index count) {
    if (count > 0) __builtin_memset(to, 0, static_cast<std::size_t>(count) * sizeof *to);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
