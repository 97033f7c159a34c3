#include "ops/ctc_loss/paths.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fusedrnn {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

}  // namespace

template <class Real>
double ctc_log_sum(const Real* logits, Index classes) {
  const double maximum = static_cast<double>(*std::max_element(logits, logits + classes));
  if (maximum == kNever) return kNever;
  double sum = 0;
  for (Index c = 0; c < classes; ++c) sum += std::exp(static_cast<double>(logits[c]) - maximum);
  return maximum + std::log(sum);
}

template <class Real>
double ctc_best_path(const Sequence<const Real>& logits, Index b, const CtcRow& row, Index classes, Index blank,
                     std::int64_t* path, Index stride) {
  // State 2 i is the blank before label i, state 2 i + 1 the label.
  const Index states = 2 * row.length + 1;
  const auto class_of = [&](Index state) { return state % 2 ? row.targets[state / 2] : blank; };
  std::vector<double> best(static_cast<std::size_t>(states) + 2, kNever);  // after two that never are
  double* const score = best.data() + 2;
  std::vector<signed char> step(static_cast<std::size_t>(row.steps * states));  // by how many states a frame advanced
  for (Index t = 0; t < row.steps; ++t) {
    const Real* const frame = logits.at(t, b);
    const double log_sum = ctc_log_sum(frame, classes);
    for (Index s = states - 1; s >= 0; --s) {  // downwards: a state needs the old scores of those before it
      const bool may_skip = s % 2 && s > 1 && row.targets[s / 2] != row.targets[s / 2 - 1];
      int advance = score[s - 1] > score[s] ? 1 : 0;
      if (may_skip && score[s - 2] > score[s - advance]) advance = 2;
      const double before = t > 0 ? score[s - advance] : s < 2 ? 0 : kNever;  // a path begins in one of two states
      score[s] = log_sum == kNever ? kNever : before + (static_cast<double>(frame[class_of(s)]) - log_sum);
      step[static_cast<std::size_t>(t * states + s)] = static_cast<signed char>(advance);
    }
  }
  if (row.steps == 0) return row.length == 0 ? 0 : kNever;
  Index s = states > 1 && score[states - 2] > score[states - 1] ? states - 2 : states - 1;
  const double found = score[s];
  if (!(found > kNever)) return kNever;
  for (Index t = row.steps - 1; t >= 0; --t) {
    path[t * stride] = class_of(s);
    s -= step[static_cast<std::size_t>(t * states + s)];
  }
  return found;
}

template <class Real>
std::vector<std::int64_t> ctc_greedy_labels(const Sequence<const Real>& logits, Index b, Index steps, Index classes,
                                            Index blank) {
  std::vector<std::int64_t> labels;
  Index before = blank;
  for (Index t = 0; t < steps; ++t) {
    const Real* const frame = logits.at(t, b);
    const Index best = std::max_element(frame, frame + classes) - frame;
    if (best != before && best != blank) labels.push_back(best);
    before = best;
  }
  return labels;
}

template double ctc_log_sum(const float*, Index);
template double ctc_log_sum(const double*, Index);
template std::vector<std::int64_t> ctc_greedy_labels(const Sequence<const float>&, Index, Index, Index, Index);
template std::vector<std::int64_t> ctc_greedy_labels(const Sequence<const double>&, Index, Index, Index, Index);
template double ctc_best_path(const Sequence<const float>&, Index, const CtcRow&, Index, Index, std::int64_t*, Index);
template double ctc_best_path(const Sequence<const double>&, Index, const CtcRow&, Index, Index, std::int64_t*, Index);

}  // namespace fusedrnn
