// Prefix search for CTC.
#pragma once
#include <functional>
#include <vector>

#include "cpu/runtime/parallel.h"
#include "ops/ctc_loss/arguments.h"

namespace fusedrnn {

struct CtcBeamOptions {
  // Added to a prefix's log-probability when a label is appended to it; empty: nothing is.
  using Score = std::function<double(const std::vector<std::int64_t>& prefix, std::int64_t label)>;

  Index width;        // prefixes that are kept after a frame
  Index top;          // hypotheses wanted
  double prune;       // classes of a lower log-probability are not looked at in a frame
  Index top_classes;  // nor those that are not among so many most probable ones
  Score score;
};

struct CtcHypothesis {
  std::vector<std::int64_t> labels;
  double log_prob;
};

// Fills `found` with the most probable prefixes of row b, best first; false when interrupted.
template <class Real>
bool ctc_beam_search(const Sequence<const Real>& logits, Index b, Index steps, Index classes, Index blank,
                     const CtcBeamOptions& options, const Interrupt& interrupt, std::vector<CtcHypothesis>& found);

}  // namespace fusedrnn
