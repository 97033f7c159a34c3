#include "ops/linear/plan.h"

#include <algorithm>

#include "cpu/runtime/contention.h"

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
int plan_linear_forward(LinearArguments<Real>& a, int threads, LinearWorkspace& workspace) {
  threads = threads_for(a, threads, 1);
  const Index blocks = blocks_of(a.out_features);
  a.chunk_rows = kForwardRows;
  a.chunk_blocks = std::min(blocks, kForwardBlocks);
  a.packed = take<Real>(workspace.packed, blocks * a.in_features * kBlock);
  a.packed_bias = take<Real>(workspace.bias, blocks * kBlock);
  a.products = take<Real>(workspace.products, threads * a.chunk_blocks * a.chunk_rows * kBlock);
  return threads;
}

template <class Real>
int plan_linear_backward(LinearArguments<Real>& a, int threads, LinearWorkspace& workspace) {
  const Index blocks = blocks_of(a.out_features), inner = padded(a.in_features);
  const Index fitting = kBackwardBytes / (blocks * kBlock * static_cast<Index>(sizeof(Real)));
  a.chunk_rows = std::max<Index>(1, std::min(a.rows, std::clamp(fitting, kLeastRows, kMostRows)));
  a.chunk_blocks = blocks;
  a.packed = take<Real>(workspace.packed, blocks * a.in_features * kBlock);
  a.packed_bias = take<Real>(workspace.bias, blocks * kBlock);
  a.packed_backward = take<Real>(workspace.transposed, inner * blocks * kBlock);
  a.products = take<Real>(workspace.products, blocks * a.chunk_rows * kBlock);
  a.x_panel = {take<Real>(workspace.panel, inner * a.chunk_rows), a.chunk_rows, kBlock};
  return threads_for(a, threads, kBackwardProducts);
}

template int plan_linear_forward(LinearArguments<float>&, int, LinearWorkspace&);
template int plan_linear_forward(LinearArguments<double>&, int, LinearWorkspace&);
template int plan_linear_backward(LinearArguments<float>&, int, LinearWorkspace&);
template int plan_linear_backward(LinearArguments<double>&, int, LinearWorkspace&);

}  // namespace fusedrnn
