// CTC's loss and gradient on a team of threads of the CPU.
#pragma once
#include "cpu/runtime/parallel.h"
#include "ops/ctc_loss/arguments.h"

namespace fusedrnn {

// Elements of workspace that a thread takes for targets of at most `longest` labels.
Index ctc_workspace(Index longest);

// Both allocate the workspace and run on at most `threads` threads; false when interrupted.
template <class Real>
bool run_ctc_forward(CtcLossArguments<Real> arguments, int threads, const Interrupt& interrupt);
template <class Real>
bool run_ctc_backward(CtcLossArguments<Real> arguments, int threads, const Interrupt& interrupt);

}  // namespace fusedrnn
