// The engine's recurrences, compiled once for each instruction set and floating-point type. Everything it includes from
// csrc/cells and csrc/cpu sits in an unnamed namespace, so that no code of one instruction set can be linked into
// another, within one named after the instruction set, so that a profile says which one ran. The only symbol it exports
// is its table of kernels. The operations are compiled likewise, in operations.cpp beside this.
#include "cells/registry.h"
#include "cpu/gemm/fma_tile.h"
#include "cpu/kernels.h"
#include "cpu/recurrence/backward.h"
#include "cpu/recurrence/direct_step.h"
#include "cpu/recurrence/forward.h"
#include "cpu/recurrence/pair_step.h"
#include "cpu/recurrence/step.h"

// Whether a type's products are those of pairs.
#define FUSEDRNN_PAIRS_float 0
#define FUSEDRNN_PAIRS_double 0
#define FUSEDRNN_PAIRS_Bfloat16 1
#define FUSEDRNN_PAIRS_NAME(real) FUSEDRNN_PAIRS_##real
#define FUSEDRNN_PAIRS_OF(real) FUSEDRNN_PAIRS_NAME(real)

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

using T = FUSEDRNN_REAL;
using A = Accumulator<T>;
using V = Vec<A>;
using Tile = std::conditional_t<std::is_same_v<T, A>, FmaTile<A>, PairTile>;

template <class Cell>
void forward(const ForwardArguments<T>& arguments, Worker& worker) {
  const typename Tile::Session session;
  Forward<Cell, T, Tile>(arguments, worker).run();
}
template <class Cell>
void backward(const BackwardArguments<T>& arguments, Worker& worker) {
  const typename Tile::Session session;
  Backward<Cell, T, Tile>(arguments, worker).run();
}
template <class Cell>
void pack(const ForwardArguments<T>& arguments, Worker& worker) {
  Forward<Cell, T, Tile>(arguments, worker).pack();
}
#define FUSEDRNN_SEQUENCE_KERNELS(...) \
  __VA_ARGS__::traits, forward<__VA_ARGS__>, backward<__VA_ARGS__>, pack<__VA_ARGS__>

#if FUSEDRNN_PAIRS_OF(FUSEDRNN_REAL)
template <class Cell>
void panel_step(const StepArguments<T>& arguments, Worker& worker) {
  const PairTile::Session session;
  PairStep<Cell>(arguments).run(worker);
}
#define FUSEDRNN_CELL_KERNELS(...) \
  {FUSEDRNN_SEQUENCE_KERNELS(__VA_ARGS__), nullptr, nullptr, nullptr, panel_step<__VA_ARGS__>, nullptr},
constexpr Index kDirectStepRows = 0;
#else
template <class Cell>
Index packed_step_size(const StepArguments<T>& arguments) {
  return StepOrder<Cell, T>(arguments).packed_size();
}
template <class Cell>
void pack_step(const StepArguments<T>& arguments, const Weights<T>& weights, A* packed) {
  StepOrder<Cell, T>(arguments).pack(weights, packed);
}
template <class Cell>
void step(const StepArguments<T>& arguments, Worker& worker) {
  PackedStep<Cell, T, StepOrder>(arguments).run(worker);
}
template <class Cell>
void panel_step(const StepArguments<T>& arguments, Worker& worker) {
  PackedStep<Cell, T, SequenceOrder>(arguments).run(worker);
}
template <class Cell>
void direct_step(const StepArguments<T>& arguments, Worker& worker) {
  DirectStep<Cell, T>(arguments).run(worker);
}

#define FUSEDRNN_CELL_KERNELS(...)         \
  {FUSEDRNN_SEQUENCE_KERNELS(__VA_ARGS__), \
   packed_step_size<__VA_ARGS__>,          \
   pack_step<__VA_ARGS__>,                 \
   step<__VA_ARGS__>,                      \
   panel_step<__VA_ARGS__>,                \
   direct_step<__VA_ARGS__>},
constexpr Index kDirectStepRows = kMostDirectRows;
#endif

template <V function(V)>
void map(const A* x, A* y, Index count) {
  for (Index i = 0; i < count; i += V::lanes) {
    const int lanes = static_cast<int>(smaller(V::lanes, count - i));
    function(V::load_partial(x + i, lanes)).store_partial(y + i, lanes);
  }
}

void round(const A* from, T* to, Index count, bool adding) {
  for (Index i = 0; i < count; i += V::lanes) {
    const int lanes = static_cast<int>(smaller(V::lanes, count - i));
    const V sum = load_partial(from + i, lanes);
    store_partial(adding ? load_partial(to + i, lanes) + sum : sum, to + i, lanes);
  }
}

double multiply_adds(Index rounds) {
  constexpr int kChains = 12;
  V chain[kChains];
  for (int k = 0; k < kChains; ++k) chain[k] = V(A(1 + k));  // equal ones would be merged into one
  V factor(A(0.999)), term(A(0.001));
  for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (V& value : chain) value = fma(value, factor, term);
    asm volatile("");  // keeps the rounds apart and the chains in registers
  }
  V sum(A(0));
  for (const V& value : chain) sum += value;
  A kept[V::lanes];
  sum.store(kept);
  asm volatile("" : : "r"(kept) : "memory");
  return 2.0 * kChains * V::lanes * static_cast<double>(rounds);
}

// In alternating directions: that order takes the most from a cache that holds only part of it.
double read(const A* from, Index count, Index rounds) {
  constexpr int kChains = 8;
  constexpr Index kBlock = kChains * V::lanes;
  V sum[kChains];
  for (V& value : sum) value = V(A(0));
  for (Index round = 0; round < rounds; ++round) {
    for (Index i = 0; i + kBlock <= count; i += kBlock) {
      const A* block = from + (round % 2 ? count - kBlock - i : i);
#pragma GCC unroll 8
      for (int k = 0; k < kChains; ++k) sum[k] += V::load(block + k * V::lanes);
    }
  }
  for (int k = 1; k < kChains; ++k) sum[0] += sum[k];
  A kept[V::lanes];
  sum[0].store(kept);
  asm volatile("" : : "r"(kept) : "memory");
  return static_cast<double>(sizeof(A)) * static_cast<double>(count / kBlock * kBlock) * static_cast<double>(rounds);
}

const CellKernels<T> cells[] = {FUSEDRNN_FOR_EACH_CELL(FUSEDRNN_CELL_KERNELS)};

const Kernels<T> kernels = {cells,
                            sizeof cells / sizeof cells[0],
                            V::lanes,
                            Tile::MR,
                            sizeof(Tile::Left) > sizeof(T),
                            kDirectStepRows,
                            map<exp<A>>,
                            map<sigmoid<A>>,
                            map<tanh<A>>,
                            round,
                            multiply_adds,
                            read};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME

const Kernels<T>& FUSEDRNN_OF_BUILD(kernels, FUSEDRNN_ISA_NAME, FUSEDRNN_REAL)() { return kernels; }

}  // namespace fusedrnn
