#include "cpu/layers/step_team.h"

namespace fusedrnn {

void StepTeam::prepare(int threads) {
  if (threads == allowed_) return;
  const Split split = split_step(cost_, threads);
  if (split.threads() > 1) row_barriers_.reset(new Barrier[static_cast<std::size_t>(split.threads())]);
  split_ = split;
  cycles_ = step_cycles(cost_);
  allowed_ = threads;
}

}  // namespace fusedrnn
