#include "cpu/layers/step_team.h"

#include "cpu/runtime/contention.h"

namespace fusedrnn {

template <class Real>
void StepTeam<Real>::run(Kernel kernel, const StepArguments<Real>* layers, std::size_t count, int threads) {
  if (threads != allowed_) {
    const Split split = split_step(cost_, threads);
    if (split.threads() > 1) row_barriers_.reset(new Barrier[static_cast<std::size_t>(split.threads())]);
    split_ = split;
    cycles_ = step_cycles(cost_);
    allowed_ = threads;
  }
  parallel(team_size(split_.threads(), cycles_ * static_cast<double>(count)), [&](int thread, int given) {
    const Split split = given == split_.threads() ? split_ : split_step(cost_, given);
    if (thread >= split.threads()) return;
    Worker worker = {thread, split, nullptr, nullptr, nullptr, nullptr};
    worker.row_barrier = split.threads() == 1 ? &alone_ : &row_barriers_[worker.row_part()];
    for (std::size_t layer = 0; layer < count; ++layer) kernel(layers[layer], worker);
  });
}

template class StepTeam<float>;
template class StepTeam<double>;
template class StepTeam<Bfloat16>;

}  // namespace fusedrnn
