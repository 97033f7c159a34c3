// Arguments of the linear map y = x W^T + b; see csrc/ops/linear/kernel.h.
#pragma once
#include "common/arguments.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/pool.h"

namespace fusedrnn {

// Rows of which a forward thread holds the products.
constexpr Index kForwardRows = 48;

// What the products and their gradients need, of the readouts that end in more as well.
template <class Real>
struct LinearArguments {
  Index rows, in_features, out_features;
  const Real* x;                   // (rows, in)
  const Real* weight;              // (out, in)
  const Real* bias;                // (out,) or null
  Real* y;                         // forward, written: (rows, out)
  const Real* dy;                  // backward: (rows, out)
  Real *dx, *dweight, *dbias;      // backward, written where there are rows; dbias may be null
  Index chunk_rows, chunk_blocks;  // products that exist at a time: chunk_rows x chunk_blocks * 16
  // Scratch.
  Real* packed;           // blocks(out) * in * 16
  Real* packed_bias;      // blocks(out) * 16
  Real* packed_backward;  // backward: blocks(in) * blocks(out) * 16 * 16
  Real* products;         // forward: (threads, chunk_blocks, chunk_rows, 16); backward: one for all threads
  Blocked<Real> x_panel;  // backward: chunk_rows rows of x
};

// The scratch of a call, which lives as long as this.
struct LinearScratch {
  Buffer packed, bias, transposed, products, panel;
};
// Plans the chunks and allocates the scratch; at most `threads` threads will run, and as many are worth while as is
// returned.
template <class Real>
int plan_linear_forward(LinearArguments<Real>& arguments, int threads, LinearScratch& scratch);
template <class Real>
int plan_linear_backward(LinearArguments<Real>& arguments, int threads, LinearScratch& scratch);

// Runs the kernels on at most `threads` threads; sizes and pointers to the caller's arrays are set. Both return false
// when interrupted.
template <class Real>
bool run_linear_forward(LinearArguments<Real> arguments, int threads, const Interrupt& interrupt);
template <class Real>
bool run_linear_backward(LinearArguments<Real> arguments, int threads, const Interrupt& interrupt);

}  // namespace fusedrnn
