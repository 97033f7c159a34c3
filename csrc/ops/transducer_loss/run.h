// The transducer's loss and gradients on a team of threads of the CPU.
#pragma once
#include "cpu/runtime/parallel.h"
#include "ops/transducer_loss/arguments.h"

namespace fusedrnn {

// Both allocate the workspace; false when interrupted.
template <class Real>
bool run_transducer_forward(TransducerLossArguments<Real> arguments, const Interrupt& interrupt);
template <class Real>
bool run_transducer_backward(TransducerLossArguments<Real> arguments, const Interrupt& interrupt);

}  // namespace fusedrnn
