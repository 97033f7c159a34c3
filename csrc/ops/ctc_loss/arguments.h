// Arguments of the loss of connectionist temporal classification (CTC); see kernel.h beside this for the CPU,
// kernel.cuh for a device.
#pragma once
#include "common/arguments.h"
#include "common/type.h"

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

// On the CPU.
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

// On a device, whose arrays are of `type`, and A of its accumulator's. A null array is absent. Lengths are taken as if
// clamped to what they may be; a target that is no label makes its row's loss and gradient nan.
struct CtcLossCall {
  Type type;
  Index steps, rows, classes, blank;
  const void* logits;  // (T, B, C) with strides in elements, that of the classes 1
  Index logits_time, logits_row;
  const std::int64_t* targets;
  const std::int64_t* offsets;  // (B,) where a row's targets begin; null: at b * targets_row
  Index targets_row;
  Index longest;                       // most labels of a row
  const std::int64_t* input_lengths;   // (B,) or null: T
  const std::int64_t* target_lengths;  // (B,) or null: longest
  int reduction;                       // 0: mean, 1: sum, 2: none
  bool zero_infinity;
  void* loss;         // A, forward, written: one, or (B,) for none
  void* losses;       // A (B,): forward writes each row's loss, infinite where it cannot be aligned; backward reads it
  void* normalizers;  // A (2, T, B): as CtcLossArguments::maximum and log_sum
  // (T, B), forward, written instead of a loss: the class of each frame of a path. With `losses` it is the most
  // probable one of the targets, `losses` are its log-probabilities, minus infinity where there is none, and the
  // normalizers are float64. Without them it is that of each frame's most probable class, for which there are no
  // normalizers either.
  std::int64_t* path;
  void* alphas;       // A (T, B, 4, longest + 1): the forward variables; null in inference
  const void* dloss;  // A, backward: one or (B,), with its stride
  Index dloss_row;
  void* dlogits;  // backward, written: (T, B, C)
  void* workspace;

  template <class Visit>
  void each_field(const Visit& visit) {
    visit("dtype", type);
    visit("steps", steps);
    visit("rows", rows);
    visit("classes", classes);
    visit("blank", blank);
    visit("logits", logits);
    visit("logits_time", logits_time);
    visit("logits_row", logits_row);
    visit("targets", targets);
    visit("offsets", offsets);
    visit("targets_row", targets_row);
    visit("longest", longest);
    visit("input_lengths", input_lengths);
    visit("target_lengths", target_lengths);
    visit("reduction", reduction);
    visit("zero_infinity", zero_infinity);
    visit("loss", loss);
    visit("losses", losses);
    visit("normalizers", normalizers);
    visit("path", path);
    visit("alphas", alphas);
    visit("dloss", dloss);
    visit("dloss_row", dloss_row);
    visit("dlogits", dlogits);
  }
};

}  // namespace fusedrnn
