// What one build of the engine, for one instruction set and one type of the arrays' elements, offers to the rest.
#pragma once
#include "common/arguments.h"
#include "cpu/runtime/worker.h"

namespace fusedrnn {

template <class T>
struct CellKernels {
  CellTraits traits;
  void (*forward)(const ForwardArguments<T>& arguments, Worker& worker);
  void (*backward)(const BackwardArguments<T>& arguments, Worker& worker);
  // Writes arguments.fresh, and reads arguments.weights and sizes alone.
  void (*pack)(const ForwardArguments<T>& arguments, Worker& worker);
  // One step from weights in an order of its own, not of 16 bits; the first two look at the arguments' sizes alone.
  Index (*packed_step_size)(const StepArguments<T>& arguments);
  void (*pack_step)(const StepArguments<T>& arguments, const Weights<T>& weights, Accumulator<T>* packed);
  void (*step)(const StepArguments<T>& arguments, Worker& worker);
  // One step from weights as `pack` packs them.
  void (*panel_step)(const StepArguments<T>& arguments, Worker& worker);
  // One step from the caller's weights, not of 16 bits.
  void (*direct_step)(const StepArguments<T>& arguments, Worker& worker);
};

template <class T>
struct Kernels {
  using A = Accumulator<T>;
  const CellKernels<T>* cells;
  int cell_count;
  Index lanes;        // values in a register
  Index tile_rows;    // MR of the micro-kernel
  bool widens;        // whether left operands are wider than the arrays' elements
  Index direct_rows;  // up to which direct_step is done sooner than packing
  // y[i] = f(x[i]); for tests of the activations.
  void (*exp)(const A* x, A* y, Index count);
  void (*sigmoid)(const A* x, A* y, Index count);
  void (*tanh)(const A* x, A* y, Index count);
  // to[i] = from[i], or to[i] + from[i], rounded once.
  void (*round)(const A* from, T* to, Index count, bool adding);
  // Runs `rounds` rounds of independent fused multiply-adds; returns how many floating-point operations they were.
  double (*multiply_adds)(Index rounds);
  // Reads `count` values `rounds` times over; returns how many bytes that were.
  double (*read)(const A* from, Index count, Index rounds);
};

// The functions that a build exports: kernels_v3_float, for one.
#define FUSEDRNN_JOIN(table, isa, real) table##_##isa##_##real
#define FUSEDRNN_OF_BUILD(table, isa, real) FUSEDRNN_JOIN(table, isa, real)

}  // namespace fusedrnn
