// What a step of a net costs: the split rule divides it by this, and a team is only started where it is large enough.
#pragma once
#include "cpu/runtime/split.h"
#include "net/config.h"

namespace fusedrnn {

// What a step of `rows` rows costs, at the layer that costs most.
template <class T>
StepCost step_cost(const CellTraits& traits, const RecurrentConfig& config, Index rows);
// The same with weights of 8 bits.
StepCost int8_step_cost(StepCost cost);
// Multiply-adds of a step of all layers.
double step_work(const CellTraits& traits, const RecurrentConfig& config, Index rows);

}  // namespace fusedrnn
