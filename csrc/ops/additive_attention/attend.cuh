// What the threads of a device do for additive attention: a block for each query, going through the locations of its
// row. kernel.h beside this says what is computed. tanh is taken of each sum of a query and a key. Every sum has an
// order of its own, so that the bits of a query's results depend on that query alone.
#pragma once
#include <cmath>

#include "common/dropout_hash.h"
#include "cuda/runtime/reduce.h"
#include "cuda/stepwise/elementwise.h"
#include "ops/additive_attention/arguments.h"

namespace fusedrnn {
namespace {

constexpr int kAttendThreads = 256;
// Threads that share a location, where something is added up for each: a piece of a line of memory.
constexpr int kAttendLanes = 8;
constexpr Index kAttendTogether = kAttendThreads / kAttendLanes;

template <class T>
struct AttentionRows {
  using A = Accumulator<T>;
  Index locations, features, size;
  const std::int64_t* lengths;  // (memory rows,) or null: all locations
  const std::int64_t* row_of;   // row -> row of the memory; null: the same
  const T* values;              // (memory rows, S, M)
  const A* keys;                // (memory rows, S, A)
  const T* weight_score;        // (A,)

  FUSEDRNN_INLINE Index memory_row(Index b) const { return row_of ? row_of[b] : b; }
  FUSEDRNN_INLINE Index count_of(Index row) const {
    return lengths ? smaller(larger(lengths[row], 0), locations) : locations;
  }
  FUSEDRNN_INLINE Index count(Index b) const { return count_of(memory_row(b)); }
  FUSEDRNN_INLINE const T* value(Index b, Index j) const { return values + (memory_row(b) * locations + j) * features; }
  FUSEDRNN_INLINE const A* key(Index b, Index j) const { return keys + (memory_row(b) * locations + j) * size; }
};

// Which queries a kernel takes: those of the steps from `first` on, one row of the batch after the other.
struct AttentionSteps {
  Index first, rows;
  const std::int64_t* lengths;  // (B,) steps of a row, or null: it has them all

  FUSEDRNN_INLINE Index step(Index query) const { return first + query / rows; }
  FUSEDRNN_INLINE Index row(Index query) const { return query % rows; }
  FUSEDRNN_INLINE bool runs(Index t, Index b) const { return !lengths || t < lengths[b]; }
};

// to[j] = sum over i < columns of term(j, i), for each location j < count.
template <class A, class Term>
FUSEDRNN_DEVICE void sum_by_location(Block& block, A* parts, Index count, Index columns, A* to, const Term& term) {
  for (Index first = 0; first < count; first += kAttendTogether) {
    block.each([&](int thread) {
      const Index j = first + thread / kAttendLanes;
      A sum = 0;
      for (Index i = thread % kAttendLanes; j < count && i < columns; i += kAttendLanes) sum += term(j, i);
      parts[thread] = sum;
    });
    block.each([&](int thread) {
      const Index j = first + thread / kAttendLanes;
      if (thread % kAttendLanes > 0 || j >= count) return;
      A sum = 0;
      for (int k = 0; k < kAttendLanes; ++k) sum += parts[thread + k];
      to[j] = sum;
    });
  }
}

// How one location is chosen, as arguments.h says.
template <class A>
struct LocationOf {
  int kind;
  std::uint64_t key;
  SequenceOf<std::int64_t> location;
  SequenceOf<A> log_prob, entropy;  // data null: nobody wants the two

  FUSEDRNN_DEVICE void choose(const A* share, Index count, Index t, Index b, A mean_log) const {
    const Index j = count == 0 ? -1 : kind == 1 ? drawn(share, count, t, b) : most_probable(share, count);
    *location.at(t, b) = j;
    if (log_prob.data) *log_prob.at(t, b) = j < 0 ? A(0) : std::log(share[j]);
    if (entropy.data) *entropy.at(t, b) = mean_log;
  }

 private:
  // The first location up to which the sum of probabilities is above a uniform number.
  FUSEDRNN_DEVICE Index drawn(const A* share, Index count, Index t, Index b) const {
    const std::uint64_t hash = DropoutHash::next(DropoutHash::next(key, t), b);
    const double uniform = static_cast<double>(hash >> 11) * 0x1p-53;
    double total = 0, sum = 0;
    for (Index j = 0; j < count; ++j) total += static_cast<double>(share[j]);
    Index last = count - 1;
    for (Index j = 0; j < count; ++j) {
      sum += static_cast<double>(share[j]);
      if (sum > uniform * total) return j;
      if (share[j] > 0) last = j;
    }
    return last;
  }
  FUSEDRNN_DEVICE static Index most_probable(const A* share, Index count) {
    Index best = 0;
    for (Index j = 1; j < count; ++j)
      if (share[j] > share[best]) best = j;
    return best;
  }
};

// Scores, their softmax, and what is read.
template <class T>
struct Attend {
  using A = Accumulator<T>;
  AttentionRows<T> memory;
  AttentionSteps steps;
  const A* queries;         // (queries, A), projected
  SequenceOf<A> attention;  // (T, B, S)
  SequenceOf<T> context;    // (T, B, M)
  LocationOf<A> chosen;

  static constexpr std::size_t kSharedBytes = 3 * kAttendThreads * sizeof(A);

  FUSEDRNN_DEVICE void operator()(Block& block, Index query) const {
    const Index t = steps.step(query), b = steps.row(query);
    const Index count = steps.runs(t, b) ? memory.count(b) : 0;
    A* const share = attention.at(t, b);
    A* const parts = static_cast<A*>(block.shared());
    A *const sums = parts + kAttendThreads, *const means = sums + kAttendThreads;
    const A* const projected = queries + query * memory.size;
    const auto score = [&](Index j, Index i) {
      return widen(memory.weight_score[i]) * std::tanh(projected[i] + memory.key(b, j)[i]);
    };
    sum_by_location(block, parts, count, memory.size, share, score);
    normalise(block, share, count, parts, sums, means);
    if (chosen.kind > 0)
      block.each([&](int thread) {
        if (thread == 0) chosen.choose(share, count, t, b, count > 0 ? std::log(sums[0]) - means[0] : A(0));
      });
    block.each([&](int thread) {
      for (Index c = thread; c < memory.features; c += kAttendThreads)
        context.at(t, b)[c] = chosen.kind > 0 ? location_value(t, b, c) : mean_value(share, b, count, c);
    });
  }

 private:
  // Scores become probabilities. sums[0] and means[0] become the sum of exponentials, relative to the largest score,
  // and the mean of the scores, relative likewise.
  FUSEDRNN_DEVICE void normalise(Block& block, A* share, Index count, A* largest, A* sums, A* means) const {
    block.each([&](int thread) {
      largest[thread] = -A(INFINITY);
      for (Index j = thread; j < count; j += kAttendThreads) largest[thread] = Largest<A>()(largest[thread], share[j]);
    });
    reduce(block, largest, Largest<A>());
    block.each([&](int thread) {
      sums[thread] = 0;
      for (Index j = thread; j < count; j += kAttendThreads) sums[thread] += std::exp(share[j] - largest[0]);
    });
    reduce(block, sums, Sum<A>());
    block.each([&](int thread) {
      means[thread] = 0;
      for (Index j = thread; j < memory.locations; j += kAttendThreads) {
        const A relative = j < count ? share[j] - largest[0] : A(0);
        share[j] = j < count ? std::exp(relative) / sums[0] : A(0);
        if (share[j] > 0) means[thread] += share[j] * relative;
      }
    });
    reduce(block, means, Sum<A>());
  }
  FUSEDRNN_DEVICE T mean_value(const A* share, Index b, Index count, Index c) const {
    A sum = 0;
    for (Index j = 0; j < count; ++j) sum += share[j] * widen(memory.value(b, j)[c]);
    return narrow<T>(sum);
  }
  FUSEDRNN_DEVICE T location_value(Index t, Index b, Index c) const {
    const Index j = *chosen.location.at(t, b);
    return j < 0 ? narrow<T>(A(0)) : memory.value(b, j)[c];
  }
};

// Gradients of a query's scores, and of the query.
template <class T>
struct DifferentiateAttention {
  using A = Accumulator<T>;
  AttentionRows<T> memory;
  AttentionSteps steps;
  const A* queries;                // (queries, A)
  SequenceOf<const A> attention;   // (T, B, S)
  const A* late;                   // (queries, M), or null: what reaches the context through a cell
  SequenceOf<const T> dcontext;    // (T, B, M); data null: zeros
  SequenceOf<const A> dattention;  // (T, B, S); data null: zeros
  bool one_location;
  SequenceOf<const std::int64_t> location;
  SequenceOf<const A> entropy, dlog_prob, dentropy;  // the gradients' data null: zeros
  A* total;                                          // (T, B, M), written: gradients of the contexts
  A* scores;                                         // (queries, S), written
  T* dqueries;                                       // (queries, A), written
  A* dscore;                                         // (queries, A), written: shares of the gradient of weight_score

  static constexpr std::size_t kSharedBytes = kAttendThreads * sizeof(A);

  FUSEDRNN_DEVICE void operator()(Block& block, Index query) const {
    const Index t = steps.step(query), b = steps.row(query);
    const bool runs = steps.runs(t, b);
    const Index count = runs ? memory.count(b) : 0;
    A* const gradient = scores + query * memory.locations;
    A* const own_total = total + (t * steps.rows + b) * memory.features;
    A* const parts = static_cast<A*>(block.shared());
    block.each([&](int thread) {
      for (Index c = thread; c < memory.features; c += kAttendThreads) {
        A sum = runs && late ? late[query * memory.features + c] : A(0);
        if (runs && dcontext.data) sum += widen(dcontext.at(t, b)[c]);
        own_total[c] = sum;
      }
    });
    if (one_location) {
      location_gradient(block, t, b, count, gradient);
    } else {
      const auto product = [&](Index j, Index c) { return own_total[c] * widen(memory.value(b, j)[c]); };
      sum_by_location(block, parts, count, memory.features, gradient, product);
      score_gradient(block, t, b, count, gradient, parts);
    }
    block.each([&](int thread) {
      for (Index i = thread; i < memory.size; i += kAttendThreads) query_gradient(query, b, count, gradient, i);
    });
  }

 private:
  FUSEDRNN_DEVICE void score_gradient(Block& block, Index t, Index b, Index count, A* gradient, A* parts) const {
    const A* const share = attention.at(t, b);
    block.each([&](int thread) {
      parts[thread] = 0;
      for (Index j = thread; j < count; j += kAttendThreads) {
        if (dattention.data) gradient[j] += dattention.at(t, b)[j];
        parts[thread] += share[j] * gradient[j];
      }
    });
    reduce(block, parts, Sum<A>());
    block.each([&](int thread) {
      for (Index j = thread; j < memory.locations; j += kAttendThreads)
        gradient[j] = j < count ? share[j] * (gradient[j] - parts[0]) : A(0);
    });
  }
  FUSEDRNN_DEVICE void location_gradient(Block& block, Index t, Index b, Index count, A* gradient) const {
    const A* const share = attention.at(t, b);
    block.each([&](int thread) {
      for (Index j = thread; j < memory.locations; j += kAttendThreads) {
        A value = 0;
        if (j < count && dlog_prob.data)
          value = *dlog_prob.at(t, b) * ((j == *location.at(t, b) ? A(1) : A(0)) - share[j]);
        if (j < count && dentropy.data && share[j] > 0)
          value -= *dentropy.at(t, b) * share[j] * (std::log(share[j]) + *entropy.at(t, b));
        gradient[j] = value;
      }
    });
  }
  // Of one element of the projected query, and that element's part in the gradient of weight_score.
  FUSEDRNN_DEVICE void query_gradient(Index query, Index b, Index count, const A* gradient, Index i) const {
    const A projected = queries[query * memory.size + i];
    A sum = 0, of_tanh = 0;
    for (Index j = 0; j < count; ++j) {
      const A squashed = std::tanh(projected + memory.key(b, j)[i]);
      sum += gradient[j] * (A(1) - squashed * squashed);
      of_tanh += gradient[j] * squashed;
    }
    dqueries[query * memory.size + i] = narrow<T>(widen(memory.weight_score[i]) * sum);
    dscore[query * memory.size + i] = of_tanh;
  }
};

// Adds what the queries of some steps, last to first, do to the gradients of the keys, but for weight_score.
template <class T>
struct AddKeyGradients {
  using A = Accumulator<T>;
  AttentionRows<T> memory;
  AttentionSteps steps;
  Index last;
  const A *queries, *scores;  // of the steps
  A* dkeys;                   // (B, S, A)
  FUSEDRNN_HOST_DEVICE void operator()(Index b, Index j, Index i) const {
    if (j >= memory.count(b)) return;
    const A key = memory.key(b, j)[i];
    A& target = dkeys[(b * memory.locations + j) * memory.size + i];
    A sum = target;
    for (Index t = last; t-- > steps.first;) {
      if (!steps.runs(t, b)) continue;
      const Index query = (t - steps.first) * steps.rows + b;
      const A squashed = std::tanh(queries[query * memory.size + i] + key);
      sum += scores[query * memory.locations + j] * (A(1) - squashed * squashed);
    }
    target = sum;
  }
};

// The memory, a row's locations one after the other; zeros past its length, where there may be nan.
template <class T>
struct GatherMemory {
  AttentionRows<T> memory;
  SequenceOf<const T> from;  // (S, rows, M)
  T* to;
  FUSEDRNN_HOST_DEVICE void operator()(Index b, Index j, Index c) const {
    to[(b * memory.locations + j) * memory.features + c] =
        j < memory.count_of(b) ? from.at(j, b)[c] : narrow<T>(Accumulator<T>(0));
  }
};
template <class T>
struct AddKeyBias {
  const T* bias;
  Accumulator<T>* keys;
  Index size;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index i) const { keys[r * size + i] += widen(bias[i]); }
};
// The last factor of the keys' gradients; rounded, as they are multiplied next.
template <class T>
struct FinishKeyGradients {
  const Accumulator<T>* from;
  const T* weight_score;
  T* to;
  Index size;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index i) const {
    to[r * size + i] = narrow<T>(from[r * size + i] * widen(weight_score[i]));
  }
};
// Of locations that were read alone: adds the gradients of the contexts.
template <class T>
struct AddLocationGradients {
  using A = Accumulator<T>;
  AttentionRows<T> memory;
  AttentionSteps steps;
  Index last;
  SequenceOf<const std::int64_t> location;
  const A* total;  // (T, B, M)
  A* to;           // (B, S, M)
  FUSEDRNN_HOST_DEVICE void operator()(Index b, Index j, Index c) const {
    A& target = to[(b * memory.locations + j) * memory.features + c];
    for (Index t = 0; t < last; ++t)
      if (*location.at(t, b) == j) target += total[(t * steps.rows + b) * memory.features + c];
  }
};
template <class T>
struct StoreMemoryGradient {
  AttentionRows<T> memory;
  const Accumulator<T>* from;  // (B, S, M)
  SequenceOf<T> to;            // (S, B, M)
  FUSEDRNN_HOST_DEVICE void operator()(Index b, Index j, Index c) const {
    to.at(j, b)[c] =
        narrow<T>(j < memory.count(b) ? from[(b * memory.locations + j) * memory.features + c] : Accumulator<T>(0));
  }
};

}  // namespace
}  // namespace fusedrnn
