// How a linear map runs on the CPU, alone or with what a readout makes of it: chunks, workspace and threads.
#pragma once
#include "cpu/isa.h"
#include "cpu/runtime/operation.h"
#include "cpu/runtime/pool.h"
#include "ops/linear/arguments.h"

namespace fusedrnn {

// The workspace of a call, which lives as long as this.
struct LinearWorkspace {
  Buffer packed, bias, transposed, products, panel;
};

// Plan the chunks and allocate the workspace; at most `threads` threads will run, and as many are worth while as is
// returned.
template <class Real>
int plan_linear_forward(LinearArguments<Real>& arguments, int threads, LinearWorkspace& workspace);
template <class Real>
int plan_linear_backward(LinearArguments<Real>& arguments, int threads, LinearWorkspace& workspace);

// Run an operation's kernels; its sizes and the pointers to the caller's arrays are set. False when interrupted.
template <class Arguments>
bool run_linear_forward(Arguments arguments, const OperationKernels<Arguments>& kernels, const Interrupt& interrupt) {
  LinearWorkspace workspace;
  const int threads = plan_linear_forward(arguments, num_threads(), workspace);
  return run_operation(arguments, threads, interrupt, kernels.forward);
}
template <class Arguments>
bool run_linear_backward(Arguments arguments, const OperationKernels<Arguments>& kernels, const Interrupt& interrupt) {
  LinearWorkspace workspace;
  const int threads = plan_linear_backward(arguments, num_threads(), workspace);
  return run_operation(arguments, threads, interrupt, kernels.backward);
}

}  // namespace fusedrnn
