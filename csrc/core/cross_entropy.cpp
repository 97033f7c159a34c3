#include "core/cross_entropy.h"

#include "core/operation.h"
#include "cpu/isa.h"

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
