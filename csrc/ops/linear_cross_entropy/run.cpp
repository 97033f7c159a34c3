#include "cpu/isa.h"
#include "cpu/runtime/operation.h"
#include "ops/linear_cross_entropy/arguments.h"

namespace fusedrnn {

template <class Real>
bool run_cross_entropy_forward(CrossEntropyArguments<Real> a, int threads, const Interrupt& interrupt) {
  LinearScratch scratch;
  threads = plan_linear_forward(a, threads, scratch);
  return run_operation(a, threads, interrupt, kernels<Real>().cross_entropy_forward);
}

template <class Real>
bool run_cross_entropy_backward(CrossEntropyArguments<Real> a, int threads, const Interrupt& interrupt) {
  LinearScratch scratch;
  threads = plan_linear_backward(a, threads, scratch);
  return run_operation(a, threads, interrupt, kernels<Real>().cross_entropy_backward);
}

template bool run_cross_entropy_forward(CrossEntropyArguments<float>, int, const Interrupt&);
template bool run_cross_entropy_forward(CrossEntropyArguments<double>, int, const Interrupt&);
template bool run_cross_entropy_backward(CrossEntropyArguments<float>, int, const Interrupt&);
template bool run_cross_entropy_backward(CrossEntropyArguments<double>, int, const Interrupt&);

}  // namespace fusedrnn
