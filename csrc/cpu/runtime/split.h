// The split rule: how many threads a direction gets and how they divide a step.
#pragma once
#include "cpu/runtime/worker.h"

namespace fusedrnn {

struct StepCost {
  Index rows;     // that run at a step, on average
  Index blocks;   // of 16 units
  Index columns;  // vectors of 16 that a unit block has in a step's product
  Index inner;    // inner dimension of the product
  Index real_bytes;
  Index lanes;      // values in a register
  Index tile_rows;  // MR of the micro-kernel
  Index steps;      // for which a team is started
  bool ragged = false;
};

// The grid of at most `threads` threads that finishes a step soonest.
Split split_step(const StepCost& cost, int threads);

// Cycles that one thread takes for a step.
double step_cycles(const StepCost& cost);

}  // namespace fusedrnn
