// A step of several layers, one after another, on a team of threads.
#pragma once
#include <memory>

#include "cpu/kernels.h"
#include "cpu/layers/recurrent.h"
#include "cpu/runtime/split.h"

namespace fusedrnn {

template <class Real>
class StepTeam {
 public:
  using Kernel = void (*)(const StepArguments<Real>& arguments, Worker& worker);

  explicit StepTeam(const StepCost& cost) : cost_(cost) {}
  // Runs the kernel on each of `count` layers, on at most `threads` threads, or fewer beside other work.
  void run(Kernel kernel, const StepArguments<Real>* layers, std::size_t count, int threads);

 private:
  StepCost cost_;
  int allowed_ = 0;  // so many threads the next two were made for
  Split split_;
  double cycles_ = 0;  // of a step of one layer on one thread
  std::unique_ptr<Barrier[]> row_barriers_;
  Barrier alone_;
};

// What a step of `rows` rows costs, at the layer that costs most.
StepCost step_cost(const CellTraits& traits, const RecurrentConfig& config, Index rows, Index real_bytes, Index lanes);
// Multiply-adds of a step of all layers.
double step_work(const CellTraits& traits, const RecurrentConfig& config, Index rows);

}  // namespace fusedrnn
