#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"
#include "ops/softmax/arguments.h"

namespace fusedrnn {
namespace {

// Elements below which a team costs more than it saves.
constexpr double kTeamElements = 1e5;
constexpr double kCyclesOfAnElement = 2;  // about

template <class Real>
int threads_for(const SoftmaxArguments<Real>& a, int threads) {
  const double elements = static_cast<double>(a.rows) * static_cast<double>(a.columns);
  return elements < kTeamElements ? 1 : team_size(threads, elements * kCyclesOfAnElement);
}

}  // namespace

template <class Real>
bool run_softmax_forward(const SoftmaxArguments<Real>& a, int threads, const Interrupt& interrupt) {
  return run_operation(a, threads_for(a, threads), interrupt, kernels<Real>().softmax_forward);
}

template <class Real>
bool run_softmax_backward(const SoftmaxArguments<Real>& a, int threads, const Interrupt& interrupt) {
  return run_operation(a, threads_for(a, threads), interrupt, kernels<Real>().softmax_backward);
}

template bool run_softmax_forward(const SoftmaxArguments<float>&, int, const Interrupt&);
template bool run_softmax_forward(const SoftmaxArguments<double>&, int, const Interrupt&);
template bool run_softmax_backward(const SoftmaxArguments<float>&, int, const Interrupt&);
template bool run_softmax_backward(const SoftmaxArguments<double>&, int, const Interrupt&);

}  // namespace fusedrnn
