#include "core/cross_entropy.h"

#include <algorithm>

#include "core/pool.h"
#include "cpu/isa.h"

namespace fusedrnn {
namespace {

// Class blocks whose logits a forward thread holds, so that they stay in its second-level cache.
constexpr Index kForwardBlocks = 64;
// Bytes of logit gradients that exist at a time in the backward pass, and the rows that make its products worth while.
constexpr Index kBackwardBytes = 4 << 20;
constexpr Index kLeastRows = 32;
constexpr Index kMostRows = 512;
// Multiply-adds below which a team costs more than it saves.
constexpr double kTeamWork = 2e5;

template <class Real>
Buffer buffer_of(Index count) {
  return Buffer(static_cast<std::size_t>(count) * sizeof(Real));
}

template <class Real>
int team_size(const CrossEntropyArguments<Real>& a, int threads) {
  const double work = static_cast<double>(a.rows) * static_cast<double>(a.classes) * static_cast<double>(a.hidden_size);
  return work < kTeamWork ? 1 : threads;
}

template <class Real>
bool run(const CrossEntropyArguments<Real>& arguments, int threads, Interrupt interrupt,
         void (*kernel)(const CrossEntropyArguments<Real>&, Worker&)) {
  struct Context {
    const CrossEntropyArguments<Real>& arguments;
    Interrupt interrupt;
    void (*kernel)(const CrossEntropyArguments<Real>&, Worker&);
    Group group;
    std::atomic<bool> stop{false};
  } context{arguments, interrupt, kernel, {}, {}};
  parallel(
      threads,
      [](void* pointer, int thread, int given) {
        Context& c = *static_cast<Context*>(pointer);
        Worker worker = {
            thread, Split{given, 1}, &c.group, nullptr, thread == 0 && c.interrupt.asked ? &c.interrupt : nullptr,
            &c.stop};
        c.kernel(c.arguments, worker);
      },
      &context);
  return !context.stop.load();
}

}  // namespace

template <class Real>
bool run_cross_entropy_forward(CrossEntropyArguments<Real> a, int threads, const Interrupt& interrupt) {
  threads = team_size(a, threads);
  const Index blocks = blocks_of(a.classes);
  a.chunk_rows = kForwardRows;
  a.chunk_blocks = std::min(blocks, kForwardBlocks);
  const Buffer packed = buffer_of<Real>(blocks * a.hidden_size * kBlock), bias = buffer_of<Real>(blocks * kBlock);
  const Buffer logits = buffer_of<Real>(threads * a.chunk_blocks * a.chunk_rows * kBlock);
  a.packed = packed.as<Real>();
  a.packed_bias = bias.as<Real>();
  a.logits = logits.as<Real>();
  return run(a, threads, interrupt, kernels<Real>().cross_entropy_forward);
}

template <class Real>
bool run_cross_entropy_backward(CrossEntropyArguments<Real> a, int threads, const Interrupt& interrupt) {
  threads = team_size(a, threads);
  const Index blocks = blocks_of(a.classes), hidden = padded(a.hidden_size);
  const Index fitting = kBackwardBytes / (blocks * kBlock * static_cast<Index>(sizeof(Real)));
  a.chunk_rows = std::max<Index>(1, std::min(a.rows, std::clamp(fitting, kLeastRows, kMostRows)));
  a.chunk_blocks = blocks;
  const Buffer packed = buffer_of<Real>(blocks * a.hidden_size * kBlock), bias = buffer_of<Real>(blocks * kBlock);
  const Buffer transposed = buffer_of<Real>(hidden * blocks * kBlock);
  const Buffer logits = buffer_of<Real>(blocks * a.chunk_rows * kBlock), panel = buffer_of<Real>(hidden * a.chunk_rows);
  a.packed = packed.as<Real>();
  a.packed_bias = bias.as<Real>();
  a.packed_backward = transposed.as<Real>();
  a.logits = logits.as<Real>();
  a.x_panel = {panel.as<Real>(), a.chunk_rows, kBlock};
  return run(a, threads, interrupt, kernels<Real>().cross_entropy_backward);
}

template bool run_cross_entropy_forward(CrossEntropyArguments<float>, int, const Interrupt&);
template bool run_cross_entropy_forward(CrossEntropyArguments<double>, int, const Interrupt&);
template bool run_cross_entropy_backward(CrossEntropyArguments<float>, int, const Interrupt&);
template bool run_cross_entropy_backward(CrossEntropyArguments<double>, int, const Interrupt&);

}  // namespace fusedrnn
