// What additive attention does before and after its steps, and how a call on all queries at once runs.
#pragma once
#include <vector>

#include "cpu/layers/schedule.h"
#include "cpu/runtime/pool.h"
#include "ops/additive_attention/arguments.h"

namespace fusedrnn {

// Its parameters, or their gradients.
template <class Item>
struct AttentionArrays {
  Item* weight_query = nullptr;   // (A, H)
  Item* weight_memory = nullptr;  // (A, M)
  Item* bias = nullptr;           // (A,)
  Item* weight_score = nullptr;   // (A,)
};

template <class Real>
struct AttentionSizes {
  Index query = 0, features = 0, size = 0;  // H, M, A
  Index locations = 0, rows = 0;            // S, B
  Sequence<const Real> memory;              // (S, B, M)
  std::vector<Index> first;                 // (B + 1,): where a row's locations begin
  Index total() const { return first.back(); }
  // lengths: (B,) or null for S each.
  void count(const std::int64_t* lengths);
};

// A memory's values, a row's locations one after the other, and its keys.
template <class Real>
class ProjectedMemory {
 public:
  ProjectedMemory() = default;
  explicit ProjectedMemory(const AttentionSizes<Real>& sizes);
  // Makes the values, where they do not lie so already, and the keys. False when interrupted.
  bool project(const AttentionSizes<Real>& sizes, const AttentionArrays<const Real>& weights,
               const Interrupt& interrupt);
  // The same with keys that were made before. Values and powers are for as long as a call lasts.
  bool stage(const AttentionSizes<Real>& sizes, const AttentionArrays<const Real>& weights, const Interrupt& interrupt);
  void drop_values();
  void own_values(const AttentionSizes<Real>& sizes);  // copies those that are the caller's
  ProjectedMemory lent_keys() const;                   // one that refers to this one's keys
  AttentionMemory<Real> view(const AttentionSizes<Real>& sizes) const;
  const Real* weight_score() const { return score_.template as<const Real>(); }
  std::size_t key_bytes() const { return keys_.bytes(); }

  // Gradients that reach weight_memory, bias and the values through the keys' gradients, which get their last factor
  // first. Those of the values are written, the others written or added. False when interrupted.
  bool differentiate(const AttentionSizes<Real>& sizes, const AttentionArrays<const Real>& weights, Real* dkeys,
                     const AttentionArrays<Real>& gradients, bool adding, Real* dvalues,
                     const Interrupt& interrupt) const;

 private:
  const Real* lent_ = nullptr;  // values that are the caller's
  Buffer values_, keys_, powers_, bounded_, weight_, score_;
  const Real* weight(const AttentionArrays<const Real>& weights) const;
  void stage_values(const AttentionSizes<Real>& sizes, const AttentionArrays<const Real>& weights);
  bool make_powers(const AttentionSizes<Real>& sizes, const Interrupt& interrupt);
  bool run_keys(const AttentionSizes<Real>& sizes, Real* dkeys, const Interrupt& interrupt) const;
};

// Packed weight_query.
template <class Real>
struct PackedQuery {
  Buffer forward, backward;
  // Packs for the arguments' sizes and weights, and makes them refer to it.
  void pack(AdditiveAttentionArguments<Real>& arguments, bool with_backward);
};

// gradient (A,) = (adding: itself) + sum over rows of shares (rows, padded A).
template <class Real>
void add_up_scores(const Real* shares, Index rows, Index size, bool adding, Real* gradient);

// Cycles of a step for all rows, forward.
double attention_cycles(Index rows, Index locations, Index size, Index features, Index lanes);

// Runs the steps that the arguments name, on a team of its own: a call on all queries at once. False when interrupted.
template <class Real>
bool run_attention(const AdditiveAttentionArguments<Real>& arguments, bool backward, const Interrupt& interrupt);

}  // namespace fusedrnn
