#include <algorithm>

#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"
#include "ops/linear/arguments.h"

namespace fusedrnn {
namespace {

// Blocks of outputs whose products a forward thread holds, so that they stay in its second-level cache.
constexpr Index kForwardBlocks = 64;
// Bytes of the outputs' gradients that are staged at a time in the backward pass, and the rows that make its products
// worth while.
constexpr Index kBackwardBytes = 4 << 20;
constexpr Index kLeastRows = 32;
constexpr Index kMostRows = 512;
// Multiply-adds below which a team costs more than it saves.
constexpr double kTeamWork = 2e5;
// Multiply-adds of float32 that a thread does in a cycle, about; and the products of the backward pass.
constexpr double kWorkOfACycle = 24;
constexpr double kBackwardProducts = 3;

template <class Real>
Real* take(Buffer& buffer, Index count) {
  buffer = Buffer(static_cast<std::size_t>(count) * sizeof(Real));
  return buffer.as<Real>();
}

template <class Real>
int threads_for(const LinearArguments<Real>& a, int threads, double products) {
  const double work =
      static_cast<double>(a.rows) * static_cast<double>(a.out_features) * static_cast<double>(a.in_features);
  return work < kTeamWork ? 1 : team_size(threads, products * work / kWorkOfACycle);
}

}  // namespace

template <class Real>
int plan_linear_forward(LinearArguments<Real>& a, int threads, LinearScratch& scratch) {
  threads = threads_for(a, threads, 1);
  const Index blocks = blocks_of(a.out_features);
  a.chunk_rows = kForwardRows;
  a.chunk_blocks = std::min(blocks, kForwardBlocks);
  a.packed = take<Real>(scratch.packed, blocks * a.in_features * kBlock);
  a.packed_bias = take<Real>(scratch.bias, blocks * kBlock);
  a.products = take<Real>(scratch.products, threads * a.chunk_blocks * a.chunk_rows * kBlock);
  return threads;
}

template <class Real>
int plan_linear_backward(LinearArguments<Real>& a, int threads, LinearScratch& scratch) {
  const Index blocks = blocks_of(a.out_features), inner = padded(a.in_features);
  const Index fitting = kBackwardBytes / (blocks * kBlock * static_cast<Index>(sizeof(Real)));
  a.chunk_rows = std::max<Index>(1, std::min(a.rows, std::clamp(fitting, kLeastRows, kMostRows)));
  a.chunk_blocks = blocks;
  a.packed = take<Real>(scratch.packed, blocks * a.in_features * kBlock);
  a.packed_bias = take<Real>(scratch.bias, blocks * kBlock);
  a.packed_backward = take<Real>(scratch.transposed, inner * blocks * kBlock);
  a.products = take<Real>(scratch.products, blocks * a.chunk_rows * kBlock);
  a.x_panel = {take<Real>(scratch.panel, inner * a.chunk_rows), a.chunk_rows, kBlock};
  return threads_for(a, threads, kBackwardProducts);
}

template <class Real>
bool run_linear_forward(LinearArguments<Real> a, int threads, const Interrupt& interrupt) {
  LinearScratch scratch;
  threads = plan_linear_forward(a, threads, scratch);
  return run_operation(a, threads, interrupt, kernels<Real>().linear_forward);
}

template <class Real>
bool run_linear_backward(LinearArguments<Real> a, int threads, const Interrupt& interrupt) {
  LinearScratch scratch;
  threads = plan_linear_backward(a, threads, scratch);
  return run_operation(a, threads, interrupt, kernels<Real>().linear_backward);
}

#define FUSEDRNN_LINEAR(Real)                                                     \
  template int plan_linear_forward(LinearArguments<Real>&, int, LinearScratch&);  \
  template int plan_linear_backward(LinearArguments<Real>&, int, LinearScratch&); \
  template bool run_linear_forward(LinearArguments<Real>, int, const Interrupt&); \
  template bool run_linear_backward(LinearArguments<Real>, int, const Interrupt&);
FUSEDRNN_LINEAR(float)
FUSEDRNN_LINEAR(double)

}  // namespace fusedrnn
