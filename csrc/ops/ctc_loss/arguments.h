// Arguments of the loss of connectionist temporal classification (CTC); see csrc/ops/ctc_loss/kernel.h.
#pragma once
#include "common/arguments.h"
#include "cpu/runtime/parallel.h"

namespace fusedrnn {

// One row of the batch.
struct CtcRow {
  Index steps;                  // frames
  const std::int64_t* targets;  // (length,) labels
  Index length;
  Index alphas;  // where its frames begin in CtcLossArguments::alphas
};

// A frame of forward variables: mantissas and exponents of the blanks, then those of the labels, which begin at
// element 1 and have a vector's slack.
FUSEDRNN_INLINE constexpr Index ctc_blanks(Index length) { return padded(length + 1); }
FUSEDRNN_INLINE constexpr Index ctc_labels(Index length) { return padded(length + 1) + kBlock; }
FUSEDRNN_INLINE constexpr Index ctc_frame(Index length) { return 2 * (ctc_blanks(length) + ctc_labels(length)); }

template <class Real>
struct CtcLossArguments {
  Index rows, classes, blank;
  const CtcRow* row;            // (B,)
  int parts;                    // of the rows: as many as there are threads, unless fewer came
  const Index* first_row;       // (parts + 1,)
  Sequence<const Real> logits;  // (T, B, C)
  Index steps;                  // T
  Real* losses;                 // forward, written: (B,); infinite where a row cannot be aligned
  // Each (T, B); forward writes them, backward reads them.
  Real* maximum;           // of a frame's logits
  Real* log_sum;           // log of the sum of exp(logits - maximum)
  Real* alphas;            // the forward variables of every row's frames; null in inference
  const Real* scale;       // backward: (B,) gradient of each row's loss
  Sequence<Real> dlogits;  // backward, written: (T, B, C)
  Real* workspace;         // (threads, workspace_size)
  Index workspace_size;
};

// Elements of workspace that a thread takes for targets of at most `longest` labels.
Index ctc_workspace(Index longest);

// Both allocate the workspace and run on at most `threads` threads; false when interrupted.
template <class Real>
bool run_ctc_forward(CtcLossArguments<Real> arguments, int threads, const Interrupt& interrupt);
template <class Real>
bool run_ctc_backward(CtcLossArguments<Real> arguments, int threads, const Interrupt& interrupt);

}  // namespace fusedrnn
