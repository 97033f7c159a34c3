// Arguments of the softmax cross-entropy readout; see csrc/ops/linear_cross_entropy.h.
#pragma once
#include "core/arguments.h"
#include "cpu/parallel.h"

namespace fusedrnn {

// Most rows whose running maximum and sum the forward pass holds.
constexpr Index kForwardRows = 48;

template <class Real>
struct CrossEntropyArguments {
  Index rows, hidden_size, classes;
  const Real* x;                // (rows, H)
  const Real* weight;           // (classes, H)
  const Real* bias;             // (classes,) or null
  const std::int64_t* targets;  // (rows,) in [0, classes), or negative: ignored
  Real* losses;                 // forward, written: (rows,); 0 where ignored
  // (rows,) each; forward writes them, backward reads them. Their sum is log(sum of exp(logits)); it is not kept,
  // because at large logits its rounding alone would be an error of the loss.
  Real* maximum;                   // of the logits
  Real* log_sum;                   // log of the sum of exp(logits - maximum)
  const Real* scale;               // backward: (rows,) gradient of each row's loss
  Real *dx, *dweight, *dbias;      // backward, written where there are rows
  Index chunk_rows, chunk_blocks;  // logits that exist at a time: chunk_rows x chunk_blocks * 16
  // Scratch.
  Real* packed;           // blocks(classes) * H * 16
  Real* packed_bias;      // blocks(classes) * 16
  Real* packed_backward;  // backward: blocks(H) * blocks(classes) * 16 * 16
  Real* logits;           // forward: (threads, chunk_blocks, chunk_rows, 16); backward: one for all threads
  Blocked<Real> x_panel;  // backward: chunk_rows rows of x
};

// Plans the chunks, allocates the scratch and runs the kernels on at most `threads` threads; sizes and pointers to the
// caller's arrays are set. Both return false when interrupted.
template <class Real>
bool run_cross_entropy_forward(CrossEntropyArguments<Real> arguments, int threads, const Interrupt& interrupt);
template <class Real>
bool run_cross_entropy_backward(CrossEntropyArguments<Real> arguments, int threads, const Interrupt& interrupt);

}  // namespace fusedrnn
