// A step of several layers, one after another, on a team of threads.
#pragma once
#include <memory>

#include "cpu/kernels.h"
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

}  // namespace fusedrnn
