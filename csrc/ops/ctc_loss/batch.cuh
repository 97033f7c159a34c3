// What CTC's kernels see of a batch on a device, and the normalisation of its frames.
#pragma once
#include <cmath>

#include "cuda/runtime/backend.h"
#include "ops/ctc_loss/arguments.h"

namespace fusedrnn {
namespace {

// Of blocks that have a frame of a row, or several.
constexpr int kFrameThreads = 128;
// Threads that share a frame's classes, and the blocks of all frames.
inline int ctc_lanes(Index classes) {
  int lanes = 1;
  while (lanes < kFrameThreads && lanes < classes) lanes *= 2;
  return lanes;
}
inline Index ctc_frame_blocks(const CtcLossCall& call) {
  const Index frames = kFrameThreads / ctc_lanes(call.classes);
  return (call.steps * call.rows + frames - 1) / frames;
}

// The batch as the kernels see it. A is the type of the normalizers.
template <class T, class A = Accumulator<T>>
struct CtcBatch {
  Index steps, rows, classes, blank, longest, targets_row;
  const T* logits;
  Index logits_time, logits_row;
  const std::int64_t *targets, *offsets, *input_lengths, *target_lengths;
  A *maximum, *log_sum;  // (T, B)

  explicit CtcBatch(const CtcLossCall& call)
      : steps(call.steps),
        rows(call.rows),
        classes(call.classes),
        blank(call.blank),
        longest(call.longest),
        targets_row(call.targets_row),
        logits(static_cast<const T*>(call.logits)),
        logits_time(call.logits_time),
        logits_row(call.logits_row),
        targets(call.targets),
        offsets(call.offsets),
        input_lengths(call.input_lengths),
        target_lengths(call.target_lengths),
        maximum(static_cast<A*>(call.normalizers)),
        log_sum(maximum + call.steps * call.rows) {}

  FUSEDRNN_INLINE static Index clamped(const std::int64_t* lengths, Index b, Index most) {
    return lengths ? smaller(larger(lengths[b], 0), most) : most;
  }
  FUSEDRNN_INLINE Index steps_of(Index b) const { return clamped(input_lengths, b, steps); }
  FUSEDRNN_INLINE Index length_of(Index b) const { return clamped(target_lengths, b, longest); }
  FUSEDRNN_INLINE const std::int64_t* targets_of(Index b) const {
    return targets + (offsets ? offsets[b] : b * targets_row);
  }
  // Whether a frame, t * B + b, is one of its row.
  FUSEDRNN_INLINE bool exists(Index frame) const {
    return frame < steps * rows && frame / rows < steps_of(frame % rows);
  }
  FUSEDRNN_INLINE bool is_class(std::int64_t label) const { return label >= 0 && label < classes; }
  FUSEDRNN_INLINE const T* frame(Index t, Index b) const { return logits + t * logits_time + b * logits_row; }
  // The log-probability of a class; where `impossible`, minus infinity throughout.
  FUSEDRNN_INLINE A log_prob(Index t, Index b, A logit) const {
    const A most = maximum[t * rows + b];
    return most == -A(INFINITY) ? most : (logit - most) - log_sum[t * rows + b];
  }
};

// The largest logit of each frame, and the log of the sum of exponentials relative to it. So many threads as `lanes`
// says have a frame. Both are nan where one of its logits is nan or +inf.
template <class T, class A = Accumulator<T>>
struct CtcNormalize {
  CtcBatch<T, A> batch;
  int lanes;  // a power of 2

  FUSEDRNN_DEVICE void operator()(Block& block, Index index) const {
    A* const maxima = static_cast<A*>(block.shared());
    A* const sums = maxima + block.threads();
    const Index first = index * (block.threads() / lanes);
    block.each([&](int thread) { add_up(first + thread / lanes, thread % lanes, maxima[thread], sums[thread]); });
    for (int width = lanes / 2; width > 0; width /= 2)
      block.each([&](int thread) {
        if (thread % lanes < width) join(maxima[thread], sums[thread], maxima[thread + width], sums[thread + width]);
      });
    block.each([&](int thread) {
      if (thread % lanes == 0) finish(first + thread / lanes, maxima[thread], sums[thread]);
    });
  }

 private:
  FUSEDRNN_DEVICE void add_up(Index frame, int lane, A& maximum, A& sum) const {
    A most = -A(INFINITY), total = 0;
    if (batch.exists(frame)) {
      const T* const logits = batch.frame(frame / batch.rows, frame % batch.rows);
      for (Index c = lane; c < batch.classes; c += lanes) {
        const A value = static_cast<A>(widen(logits[c]));
        if (value > most) {
          total = total * std::exp(most - value) + A(1);
          most = value;
        } else if (!(value == -A(INFINITY))) {
          total += std::exp(value - most);
        }
      }
    }
    maximum = most;
    sum = total;
  }
  FUSEDRNN_DEVICE static void join(A& maximum, A& sum, A other_maximum, A other_sum) {
    const A most = other_maximum > maximum ? other_maximum : maximum;
    sum = most == -A(INFINITY) ? sum + other_sum
                               : sum * std::exp(maximum - most) + other_sum * std::exp(other_maximum - most);
    maximum = most;
  }
  FUSEDRNN_DEVICE void finish(Index frame, A maximum, A sum) const {
    if (!batch.exists(frame)) return;
    const bool is_number = sum == sum && maximum < A(INFINITY);
    batch.maximum[frame] = is_number ? maximum : A(NAN);
    batch.log_sum[frame] = is_number ? std::log(sum) : A(NAN);
  }
};

}  // namespace
}  // namespace fusedrnn
