#include "core/softmax.h"

#include "core/operation.h"
#include "cpu/isa.h"

namespace fusedrnn {
namespace {

// Elements below which a team costs more than it saves.
constexpr double kTeamElements = 1e5;

template <class Real>
int team_size(const SoftmaxArguments<Real>& a, int threads) {
  return static_cast<double>(a.rows) * static_cast<double>(a.columns) < kTeamElements ? 1 : threads;
}

}  // namespace

template <class Real>
bool run_softmax_forward(const SoftmaxArguments<Real>& a, int threads, const Interrupt& interrupt) {
  return run_operation(a, team_size(a, threads), interrupt, kernels<Real>().softmax_forward);
}

template <class Real>
bool run_softmax_backward(const SoftmaxArguments<Real>& a, int threads, const Interrupt& interrupt) {
  return run_operation(a, team_size(a, threads), interrupt, kernels<Real>().softmax_backward);
}

template bool run_softmax_forward(const SoftmaxArguments<float>&, int, const Interrupt&);
template bool run_softmax_forward(const SoftmaxArguments<double>&, int, const Interrupt&);
template bool run_softmax_backward(const SoftmaxArguments<float>&, int, const Interrupt&);
template bool run_softmax_backward(const SoftmaxArguments<double>&, int, const Interrupt&);

}  // namespace fusedrnn
