// Prefix search (Hannun, Maas, Jurafsky & Ng, "First-pass large vocabulary continuous speech recognition using
// bi-directional recurrent DNNs", 2014): all paths of a prefix are added up, those that end in a blank apart from those
// that end in its last label. Prefixes are nodes of a tree, so that two ways to one prefix meet.
#include "ops/ctc_loss/beam.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "ops/ctc_loss/paths.h"

namespace fusedrnn {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == kNever ? a : a + std::log1p(std::exp(b - a));
}

struct Node {
  Index parent, label, child = -1, sibling = -1;
  Index place = -1;                 // in the beam, or -1
  std::vector<double> scores = {};  // of each label to append; made where there is a score
};

struct Prefix {
  Index node;
  double blank, label;  // log-probability of its paths that end in a blank, and in its last label
  double total() const { return log_add(blank, label); }
};

// A prefix and a label appended to it: `place` is the prefix's in the beam.
struct Extension {
  double log_prob;
  Index place, label;
};

class Search {
 public:
  Search(Index classes, Index blank, const CtcBeamOptions& options)
      : classes_(classes), blank_(blank), options_(options), nodes_(1, Node{-1, blank}) {
    beam_.push_back({0, 0, kNever});
    nodes_[0].place = 0;
  }

  // log_probs: of all classes, minus infinity for those not to be looked at.
  void advance(const double* log_probs, const std::vector<Index>& kept) {
    const std::size_t width = beam_.size();
    totals_.resize(width);
    for (std::size_t i = 0; i < width; ++i) totals_[i] = beam_[i].total();
    next_.clear();
    for (std::size_t i = 0; i < width; ++i) next_.push_back(stayed(i, log_probs));
    extensions_.clear();
    for (std::size_t i = 0; i < width; ++i) extend(static_cast<Index>(i), log_probs, kept);
    select();
  }

  std::vector<CtcHypothesis> best() const {
    // Pairs, for by clang libstdc++ 12's stable_sort warns of itself: of equal ones the first in the beam comes first.
    std::vector<std::pair<double, const Prefix*>> ranked;
    for (const Prefix& prefix : beam_)
      if (prefix.total() > kNever) ranked.emplace_back(-prefix.total(), &prefix);
    std::sort(ranked.begin(), ranked.end());
    if (static_cast<Index>(ranked.size()) > options_.top) ranked.resize(static_cast<std::size_t>(options_.top));
    std::vector<CtcHypothesis> all;
    for (const auto& [cost, prefix] : ranked) all.push_back({labels_of(prefix->node), -cost});
    return all;
  }

 private:
  const Index classes_, blank_;
  const CtcBeamOptions& options_;
  std::vector<Node> nodes_;
  std::vector<Prefix> beam_, next_;
  std::vector<double> totals_;
  std::vector<Extension> extensions_;

  std::vector<std::int64_t> labels_of(Index node) const {
    std::vector<std::int64_t> labels;
    for (; node > 0; node = nodes_[static_cast<std::size_t>(node)].parent)
      labels.push_back(nodes_[static_cast<std::size_t>(node)].label);
    std::reverse(labels.begin(), labels.end());
    return labels;
  }

  // What appending a label to the prefix at a place gives: after a blank, where it repeats the last one.
  double extended(Index place, Index label, const double* log_probs) {
    const Prefix& prefix = beam_[static_cast<std::size_t>(place)];
    const bool repeats = prefix.node > 0 && nodes_[static_cast<std::size_t>(prefix.node)].label == label;
    const double before = repeats ? prefix.blank : totals_[static_cast<std::size_t>(place)];
    const double log_prob = before + log_probs[label];
    return options_.score && log_prob > kNever ? log_prob + score(prefix.node, label) : log_prob;
  }
  double score(Index node, Index label) {
    std::vector<double>& scores = nodes_[static_cast<std::size_t>(node)].scores;
    if (scores.empty()) scores.assign(static_cast<std::size_t>(classes_), std::numeric_limits<double>::quiet_NaN());
    double& value = scores[static_cast<std::size_t>(label)];
    if (value != value) value = options_.score(labels_of(node), label);
    return value;
  }

  // The prefix at a place, as it is after the frame: its own paths, and those of its parent if that is in the beam.
  Prefix stayed(std::size_t place, const double* log_probs) {
    const Prefix& prefix = beam_[place];
    const Node& node = nodes_[static_cast<std::size_t>(prefix.node)];
    Prefix after = {prefix.node, totals_[place] + log_probs[blank_], kNever};
    if (prefix.node == 0) return after;
    after.label = prefix.label + log_probs[node.label];
    const Index parent = nodes_[static_cast<std::size_t>(node.parent)].place;
    if (parent >= 0) after.label = log_add(after.label, extended(parent, node.label, log_probs));
    return after;
  }

  // Every extension of a prefix that is not in the beam already.
  void extend(Index place, const double* log_probs, const std::vector<Index>& kept) {
    const Index node = beam_[static_cast<std::size_t>(place)].node;
    const auto first = static_cast<std::ptrdiff_t>(extensions_.size());
    for (const Index label : kept) {
      if (label == blank_) continue;
      const double log_prob = extended(place, label, log_probs);
      if (log_prob > kNever) extensions_.push_back({log_prob, place, label});
    }
    for (Index child = nodes_[static_cast<std::size_t>(node)].child; child >= 0;
         child = nodes_[static_cast<std::size_t>(child)].sibling) {
      const Node& existing = nodes_[static_cast<std::size_t>(child)];
      if (existing.place < 0) continue;
      const auto same = [&](const Extension& one) { return one.label == existing.label; };
      const auto found = std::find_if(extensions_.begin() + first, extensions_.end(), same);
      if (found != extensions_.end()) found->log_prob = kNever;
    }
  }

  // The most probable of what stayed and of the extensions; of equal ones those that stand first.
  void select() {
    const std::size_t width = static_cast<std::size_t>(options_.width);
    for (const Prefix& prefix : beam_) nodes_[static_cast<std::size_t>(prefix.node)].place = -1;
    std::vector<std::pair<double, std::size_t>> order;  // numbers: those that stayed, then the extensions
    for (std::size_t i = 0; i < next_.size(); ++i) order.emplace_back(next_[i].total(), i);
    for (std::size_t i = 0; i < extensions_.size(); ++i) order.emplace_back(extensions_[i].log_prob, next_.size() + i);
    const auto better = [](const auto& a, const auto& b) {
      return a.first > b.first || (a.first == b.first && a.second < b.second);
    };
    if (order.size() > width) {
      std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(width) - 1, order.end(), better);
      order.resize(width);
    }
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    std::vector<Prefix> chosen;
    for (const auto& [log_prob, number] : order)
      if (log_prob > kNever) chosen.push_back(number < next_.size() ? next_[number] : appended(number - next_.size()));
    beam_ = std::move(chosen);
    for (std::size_t i = 0; i < beam_.size(); ++i)
      nodes_[static_cast<std::size_t>(beam_[i].node)].place = static_cast<Index>(i);
  }

  Prefix appended(std::size_t number) {
    const Extension& one = extensions_[number];
    const Index parent = beam_[static_cast<std::size_t>(one.place)].node;
    return {child_of(parent, one.label), kNever, one.log_prob};
  }
  // The node of a prefix that was in the beam before is used again: its own extensions may still be there.
  Index child_of(Index parent, Index label) {
    Index child = nodes_[static_cast<std::size_t>(parent)].child;
    for (; child >= 0; child = nodes_[static_cast<std::size_t>(child)].sibling)
      if (nodes_[static_cast<std::size_t>(child)].label == label) return child;
    child = static_cast<Index>(nodes_.size());
    Node made = {parent, label};
    made.sibling = nodes_[static_cast<std::size_t>(parent)].child;
    nodes_.push_back(std::move(made));
    nodes_[static_cast<std::size_t>(parent)].child = child;
    return child;
  }
};

// The classes that a frame looks at, in order; the most probable one is always among them.
std::vector<Index> classes_to_look_at(const std::vector<double>& log_probs, const CtcBeamOptions& options) {
  std::vector<Index> kept;
  const Index classes = static_cast<Index>(log_probs.size());
  for (Index c = 0; c < classes; ++c)
    if (log_probs[static_cast<std::size_t>(c)] >= options.prune) kept.push_back(c);
  const auto better = [&](Index a, Index b) {
    const double of_a = log_probs[static_cast<std::size_t>(a)], of_b = log_probs[static_cast<std::size_t>(b)];
    return of_a > of_b || (of_a == of_b && a < b);
  };
  if (kept.empty()) kept.push_back(std::max_element(log_probs.begin(), log_probs.end()) - log_probs.begin());
  if (static_cast<Index>(kept.size()) > options.top_classes) {
    std::nth_element(kept.begin(), kept.begin() + options.top_classes - 1, kept.end(), better);
    kept.resize(static_cast<std::size_t>(options.top_classes));
    std::sort(kept.begin(), kept.end());
  }
  return kept;
}

}  // namespace

template <class Real>
bool ctc_beam_search(const Sequence<const Real>& logits, Index b, Index steps, Index classes, Index blank,
                     const CtcBeamOptions& options, const Interrupt& interrupt, std::vector<CtcHypothesis>& found) {
  Search search(classes, blank, options);
  std::vector<double> all(static_cast<std::size_t>(classes)), seen(all);
  for (Index t = 0; t < steps; ++t) {
    if (interrupt.asked(interrupt.context)) return false;
    const Real* const frame = logits.at(t, b);
    const double log_sum = ctc_log_sum(frame, classes);
    for (Index c = 0; c < classes; ++c)
      all[static_cast<std::size_t>(c)] = log_sum == kNever ? kNever : static_cast<double>(frame[c]) - log_sum;
    const std::vector<Index> kept = classes_to_look_at(all, options);
    std::fill(seen.begin(), seen.end(), kNever);
    for (const Index c : kept) seen[static_cast<std::size_t>(c)] = all[static_cast<std::size_t>(c)];
    search.advance(seen.data(), kept);
  }
  found = search.best();
  return true;
}

template bool ctc_beam_search(const Sequence<const float>&, Index, Index, Index, Index, const CtcBeamOptions&,
                              const Interrupt&, std::vector<CtcHypothesis>&);
template bool ctc_beam_search(const Sequence<const double>&, Index, Index, Index, Index, const CtcBeamOptions&,
                              const Interrupt&, std::vector<CtcHypothesis>&);

}  // namespace fusedrnn
