// A step of several layers, one after another, on a team of threads.
#pragma once
#include <memory>

#include "cpu/kernels.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/split.h"

namespace fusedrnn {

class StepTeam {
 public:
  explicit StepTeam(const StepCost& cost) : cost_(cost) {}
  // Calls step(layer, worker) for each of `count` layers, on at most `threads` threads, or fewer beside other work.
  template <class Step>
  void run(std::size_t count, int threads, const Step& step) {
    prepare(threads);
    parallel(team_size(split_.threads(), cycles_ * static_cast<double>(count)), [&](int thread, int given) {
      const Split split = given == split_.threads() ? split_ : split_step(cost_, given);
      if (thread >= split.threads()) return;
      Worker worker = {thread, split, nullptr, nullptr, nullptr, nullptr};
      worker.row_barrier = split.threads() == 1 ? &alone_ : &row_barriers_[worker.row_part()];
      for (std::size_t layer = 0; layer < count; ++layer) step(layer, worker);
    });
  }

 private:
  void prepare(int threads);

  StepCost cost_;
  int allowed_ = 0;  // so many threads the next two were made for
  Split split_;
  double cycles_ = 0;  // of a step of one layer on one thread
  std::unique_ptr<Barrier[]> row_barriers_;
  Barrier alone_;
};

}  // namespace fusedrnn
