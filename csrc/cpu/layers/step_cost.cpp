#include "cpu/layers/step_cost.h"

#include <algorithm>

#include "cpu/isa.h"

namespace fusedrnn {

template <class T>
StepCost step_cost(const CellTraits& traits, const RecurrentConfig& config, Index rows) {
  const Kernels<T>& table = kernels<T>();
  StepCost cost;
  cost.rows = rows;
  cost.blocks = blocks_of(config.hidden_size);
  cost.columns = traits.gates;
  cost.inner = std::max(config.input_size, config.layers > 1 ? config.width() : 0) + config.hidden_size;
  cost.real_bytes = sizeof(T);  // of packed weights
  cost.lanes = table.lanes;
  cost.tile_rows = table.tile_rows;
  cost.steps = 1;
  return cost;
}
template StepCost step_cost<float>(const CellTraits&, const RecurrentConfig&, Index);
template StepCost step_cost<double>(const CellTraits&, const RecurrentConfig&, Index);
template StepCost step_cost<Bfloat16>(const CellTraits&, const RecurrentConfig&, Index);

StepCost int8_step_cost(StepCost cost) {
  cost.real_bytes = 1;
  cost.lanes *= 2;  // four products a word, of the high and of the low byte
  return cost;
}

double step_work(const CellTraits& traits, const RecurrentConfig& config, Index rows) {
  double inner = 0;
  for (int layer = 0; layer < config.layers; ++layer)
    inner += static_cast<double>(config.input_of(layer) + config.hidden_size);
  return inner * static_cast<double>(rows) * static_cast<double>(traits.gates * config.width());
}

}  // namespace fusedrnn
