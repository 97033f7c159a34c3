// Arguments of the transducer's loss; see kernel.h beside this.
#pragma once
#include "common/type.h"
#include "ops/linear/arguments.h"

namespace fusedrnn {

// One row of the batch. Its cells (t, u) lie one after the other, u running first: steps * (length + 1) of them.
struct TransducerRow {
  Index steps;                  // frames
  const std::int64_t* targets;  // (length,) labels
  Index length;
  Index cells;   // where they begin in the arrays over cells
  Index frames;  // where its frames begin in TransducerLossArguments::frames
};

// The cells of one frame of a row that are computed: labels [first, first + count) have been emitted. Those of all
// frames are numbered one after the other, which begins at `start`.
struct TransducerFrame {
  Index row, time;
  Index cells;  // where the frame's begin in the arrays over cells
  Index first, count, start;
};

// What the backward pass knows of a cell of a chunk.
template <class Real>
struct TransducerCell {
  Real maximum, log_sum;
  Real occupancy, blank, label;  // gradients of the loss by way of the cell, of its blank, of its label
  Index target;                  // or negative where there is none
};

// A readout of the cells: x are their hidden values, a chunk of them at a time, and dx the gradients of those.
template <class Real>
struct TransducerLossArguments : LinearArguments<Real> {  // without y and dy; `rows` are all cells
  Index batch, blank;
  const TransducerRow* row;        // (B,)
  Sequence<const Real> encoder;    // (T, B, J)
  Sequence<const Real> predictor;  // (U + 1, B, J)
  Real* losses;                    // forward, written: (B,); infinite where no path is possible
  // Over cells; forward writes them, backward reads them.
  Real *maximum, *log_sum;      // of the logits; log of the sum of exp(logits - maximum)
  Real *log_blank, *log_label;  // log-probabilities of the blank and of the next label
  const Real* scale;            // backward: (B,) gradient of each row's loss
  Real *dencoder, *dpredictor;  // backward, added to: (T, B, J) and (U + 1, B, J); so are dweight and dbias
  // Workspace.
  TransducerFrame* frames;  // of all rows, and one past them, whose start is the number of all cells
  Index frame_count;
  Real* hidden;                // forward: (threads, kForwardRows, J), backward: (chunk_rows, J); x is the same
  Real *to_blank, *to_label;   // backward: over cells: how probable a path is that goes on by a blank, by the label
  TransducerCell<Real>* cell;  // backward: (chunk_rows,)
  Real* lattice;               // (threads, lattice_size)
  Index lattice_size;
};

// On a device, whose arrays are of `type`, and A of its accumulator's. A null array is absent. Every row has all cells
// (t, u), T * (U + 1) of them, of which those past its lengths do not count. Lengths are taken as if clamped to what
// they may be; a target that is no label makes its row's loss and gradients nan.
struct TransducerLossCall {
  Type type;
  Index steps, batch, longest;  // T, B, U
  Index in_features, out_features, blank;
  const void* encoder;    // (T, B, J) with strides in elements, that of J 1
  const void* predictor;  // (U + 1, B, J), likewise
  Index encoder_time, encoder_row, predictor_label, predictor_row;
  const void* weight;                  // (V, J)
  const void* bias;                    // (V,) or null
  const std::int64_t* targets;         // (B, U)
  const std::int64_t* input_lengths;   // (B,) or null: T
  const std::int64_t* target_lengths;  // (B,) or null: U
  int reduction;                       // 0: mean, 1: sum, 2: none
  void* loss;                          // A, forward, written: one, or (B,) for none
  void* losses;                        // A (B,): forward writes each row's loss, backward reads it
  void* cells;                         // A (4, B, T, U + 1): as maximum, log_sum, log_blank and log_label above
  const void* dloss;                   // A, backward: one or (B,), with its stride
  Index dloss_row;
  void *dencoder, *dpredictor, *dweight, *dbias;  // backward, written; in the shapes of what they belong to
  void* workspace;

  template <class Visit>
  void each_field(const Visit& visit) {
    visit("dtype", type);
    visit("steps", steps);
    visit("batch", batch);
    visit("longest", longest);
    visit("in_features", in_features);
    visit("out_features", out_features);
    visit("blank", blank);
    visit("encoder", encoder);
    visit("predictor", predictor);
    visit("encoder_time", encoder_time);
    visit("encoder_row", encoder_row);
    visit("predictor_label", predictor_label);
    visit("predictor_row", predictor_row);
    visit("weight", weight);
    visit("bias", bias);
    visit("targets", targets);
    visit("input_lengths", input_lengths);
    visit("target_lengths", target_lengths);
    visit("reduction", reduction);
    visit("loss", loss);
    visit("losses", losses);
    visit("cells", cells);
    visit("dloss", dloss);
    visit("dloss_row", dloss_row);
    visit("dencoder", dencoder);
    visit("dpredictor", dpredictor);
    visit("dweight", dweight);
    visit("dbias", dbias);
  }
};

// The workspace of a row's lattice; see lattice.h. Numbers of a diagonal by u, with a block before and after them.
FUSEDRNN_INLINE constexpr Index lattice_line(Index length) { return padded(length + 1) + 2 * kBlock; }
// The cells of a diagonal, in whole blocks.
FUSEDRNN_INLINE constexpr Index lattice_diagonal(Index steps, Index length) {
  return padded(smaller(steps, length + 1)) + kBlock;
}
// Elements; the backward pass keeps the alphas of all diagonals.
FUSEDRNN_INLINE constexpr Index lattice_size(Index steps, Index length, bool backward) {
  return 7 * lattice_line(length) + (backward ? 2 * (steps + length) * lattice_diagonal(steps, length) : 0);
}

}  // namespace fusedrnn
