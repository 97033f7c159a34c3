// What the transducer's kernels see of a batch on a device, and its cells before and after the joint's products.
#pragma once
#include <cmath>

#include "common/scaled.h"
#include "cuda/runtime/backend.h"
#include "cuda/runtime/scalar.h"
#include "ops/linear/class_parts.cuh"
#include "ops/transducer_loss/arguments.h"

namespace fusedrnn {
namespace {

// Cell n is (t, u) of row b, for n = (b * T + t) * (U + 1) + u.
struct TransducerPlace {
  Index row, time, label;
};

template <class T>
struct TransducerBatch {
  using A = Accumulator<T>;
  Index steps, rows, longest, features, classes, blank;
  const T *encoder, *predictor, *bias;
  Index encoder_time, encoder_row, predictor_label, predictor_row;
  const std::int64_t *targets, *input_lengths, *target_lengths;
  A *maximum, *log_sum, *log_blank, *log_label;  // (B, T, U + 1)

  explicit TransducerBatch(const TransducerLossCall& call)
      : steps(call.steps),
        rows(call.batch),
        longest(call.longest),
        features(call.in_features),
        classes(call.out_features),
        blank(call.blank),
        encoder(static_cast<const T*>(call.encoder)),
        predictor(static_cast<const T*>(call.predictor)),
        bias(static_cast<const T*>(call.bias)),
        encoder_time(call.encoder_time),
        encoder_row(call.encoder_row),
        predictor_label(call.predictor_label),
        predictor_row(call.predictor_row),
        targets(call.targets),
        input_lengths(call.input_lengths),
        target_lengths(call.target_lengths),
        maximum(static_cast<A*>(call.cells)),
        log_sum(maximum + cells()),
        log_blank(log_sum + cells()),
        log_label(log_blank + cells()) {}

  FUSEDRNN_INLINE Index width() const { return longest + 1; }
  FUSEDRNN_INLINE Index cells() const { return rows * steps * width(); }
  FUSEDRNN_INLINE static Index clamped(const std::int64_t* lengths, Index b, Index most) {
    return lengths ? smaller(larger(lengths[b], 0), most) : most;
  }
  FUSEDRNN_INLINE Index steps_of(Index b) const { return clamped(input_lengths, b, steps); }
  FUSEDRNN_INLINE Index length_of(Index b) const { return clamped(target_lengths, b, longest); }
  FUSEDRNN_INLINE TransducerPlace place(Index n) const {
    return {n / width() / steps, n / width() % steps, n % width()};
  }
  FUSEDRNN_INLINE Index cell(Index b, Index t, Index u) const { return (b * steps + t) * width() + u; }
  FUSEDRNN_INLINE bool exists(TransducerPlace at) const {
    return at.time < steps_of(at.row) && at.label <= length_of(at.row);
  }
  // The label that may come next in a cell; -1 after the last one.
  FUSEDRNN_INLINE std::int64_t target(TransducerPlace at) const {
    return at.label < length_of(at.row) ? targets[at.row * longest + at.label] : -1;
  }
  FUSEDRNN_INLINE bool is_label(std::int64_t label) const { return label >= 0 && label < classes && label != blank; }
};

// The hidden values of a chunk of cells; 0 where a cell does not exist, whatever encoder and predictor hold there.
template <class T>
struct TransducerJoin {
  using A = Accumulator<T>;
  TransducerBatch<T> batch;
  Index first;
  T* hidden;  // (chunk, J)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index i, Index j) const {
    const TransducerPlace at = batch.place(first + i);
    A value = 0;
    if (batch.exists(at))
      value = std::tanh(widen(batch.encoder[at.time * batch.encoder_time + at.row * batch.encoder_row + j]) +
                        widen(batch.predictor[at.label * batch.predictor_label + at.row * batch.predictor_row + j]));
    hidden[i * batch.features + j] = narrow<T>(value);
  }
};

// From partial maxima and sums of a chunk's logits to what is kept of its cells.
template <class T>
struct TransducerEmit {
  using A = Accumulator<T>;
  TransducerBatch<T> batch;
  Index first;
  const A *logits, *maxima, *sums;  // (chunk, V) without bias, (chunk, kClassParts) twice
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index i) const {
    const Index n = first + i;
    const TransducerPlace at = batch.place(n);
    if (!batch.exists(at)) return;
    A most = -A(INFINITY), sum = 0;
    for (Index p = 0; p < kClassParts; ++p) most = larger_of(maxima[i * kClassParts + p], most);
    for (Index p = 0; p < kClassParts; ++p) {
      const A part = sums[i * kClassParts + p];
      if (part != A(0)) sum += part * std::exp(maxima[i * kClassParts + p] - most);
    }
    const A log_sum = std::log(sum);
    const std::int64_t target = batch.target(at);
    batch.maximum[n] = most;
    batch.log_sum[n] = log_sum;
    batch.log_blank[n] = log_prob(i, batch.blank, most, log_sum);
    batch.log_label[n] = target == -1 && at.label == batch.length_of(at.row) ? -A(INFINITY)
                         : batch.is_label(target)                            ? log_prob(i, target, most, log_sum)
                                                                             : not_a_number<A>();
  }

 private:
  FUSEDRNN_INLINE static A larger_of(A a, A b) { return a > b ? a : b; }
  FUSEDRNN_HOST_DEVICE A log_prob(Index i, Index c, A most, A log_sum) const {
    const A logit = logits[i * batch.classes + c] + (batch.bias ? widen(batch.bias[c]) : A(0));
    // Where no class is possible, none is.
    return most == -A(INFINITY) && log_sum == log_sum ? -A(INFINITY) : (logit - most) - log_sum;
  }
};

// The gradients of a chunk's logits.
template <class T>
struct TransducerSlope {
  using A = Accumulator<T>;
  TransducerBatch<T> batch;
  Index first;
  const A *logits, *to_blank, *to_label, *scale;
  T* to;  // (chunk, V)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index i, Index c) const {
    const Index n = first + i;
    const TransducerPlace at = batch.place(n);
    A value = 0;
    if (batch.exists(at)) {
      const A blank = to_blank[n] * scale[at.row], label = to_label[n] * scale[at.row], occupancy = blank + label;
      if (occupancy != A(0)) {  // else no path comes here
        const A logit = logits[i * batch.classes + c] + (batch.bias ? widen(batch.bias[c]) : A(0));
        value = std::exp((logit - batch.maximum[n]) - batch.log_sum[n]) * occupancy;
        if (c == batch.blank) value -= blank;
        if (c == batch.target(at)) value -= label;
      }
    }
    to[i * batch.classes + c] = narrow<T>(value);
  }
};

// Adds a chunk's gradients of hidden values to those of the frames of the encoder, cell by cell: a thread has a column
// of a frame.
template <class T>
struct TransducerFrames {
  using A = Accumulator<T>;
  TransducerBatch<T> batch;
  Index first, count;  // cells
  const T* hidden;
  const A* dhidden;
  A* sums;  // (T, B, J)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index frame, Index j) const {
    const Index begin = (first / batch.width() + frame) * batch.width();
    const TransducerPlace at = batch.place(begin);
    A& sum = sums[(at.time * batch.rows + at.row) * batch.features + j];
    const Index last = smaller(begin + batch.width(), first + count);
    for (Index n = larger(begin, first); n < last; ++n) sum += through_tanh((n - first) * batch.features + j);
  }

 protected:
  FUSEDRNN_HOST_DEVICE A through_tanh(Index at) const {
    const A h = widen(hidden[at]);
    return dhidden[at] * (A(1) - h * h);
  }
};

// The same for the predictor: a thread has a column of a row's label.
template <class T>
struct TransducerLabels : TransducerFrames<T> {
  using A = Accumulator<T>;
  using Base = TransducerFrames<T>;
  using Base::batch, Base::first, Base::count, Base::sums;  // sums: (U + 1, B, J)
  FUSEDRNN_HOST_DEVICE void operator()(Index row, Index u, Index j) const {
    const Index b = batch.place(first).row + row;
    A& sum = sums[(u * batch.rows + b) * batch.features + j];
    const Index begin = batch.cell(b, 0, u), end = smaller(batch.cell(b + 1, 0, 0), first + count);
    const Index skipped = begin < first ? (first - begin + batch.width() - 1) / batch.width() : 0;  // frames
    for (Index n = begin + skipped * batch.width(); n < end; n += batch.width())
      sum += this->through_tanh((n - first) * batch.features + j);
  }
};

}  // namespace
}  // namespace fusedrnn
