// Single paths through the states of CTC (see kernel.h): the most probable one of given targets, and that of the most
// probable class of each frame.
#pragma once
#include <vector>

#include "ops/ctc_loss/arguments.h"

namespace fusedrnn {

// Writes the class of each frame to path[t * stride], and returns the path's log-probability; minus infinity, with
// nothing written, where no path has a probability above 0. By Viterbi's algorithm (1967), in float64.
template <class Real>
double ctc_best_path(const Sequence<const Real>& logits, Index b, const CtcRow& row, Index classes, Index blank,
                     std::int64_t* path, Index stride);

// The log of the sum of a frame's exponentials; minus infinity where every class is impossible.
template <class Real>
double ctc_log_sum(const Real* logits, Index classes);

// The most probable class of each frame, repetitions merged and blanks removed; of equal ones the first.
template <class Real>
std::vector<std::int64_t> ctc_greedy_labels(const Sequence<const Real>& logits, Index b, Index steps, Index classes,
                                            Index blank);

}  // namespace fusedrnn
