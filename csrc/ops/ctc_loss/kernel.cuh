// Connectionist temporal classification on a device; kernel.h beside this is the CPU's and says what is computed. Label
// i stands between blank i and blank i + 1. A block has a row of the batch, its threads blanks and labels, and the loop
// over the frames is inside; two frames of forward or backward variables lie in the block's memory. The backward pass
// writes the backward variables of a chunk of frames, and then a block for each frame and row its gradient. Every sum
// has an order of its own, so that a row's bits depend on that row alone. A row with a target that is no label gives
// nan.
#pragma once
#include <algorithm>
#include <cmath>

#include "common/scaled.h"
#include "cuda/engine.h"
#include "cuda/runtime/arena.h"
#include "cuda/runtime/backend.h"
#include "cuda/runtime/scalar.h"
#include "ops/ctc_loss/batch.cuh"
#include "ops/ctc_loss/paths.cuh"

namespace fusedrnn {
namespace {

// Frames whose probabilities a block computes at once, and after which mantissas are brought back to [1, 2).
constexpr int kCtcTile = 8;
constexpr Index kCtcChunkBytes = Index(64) << 20;  // of a chunk's backward variables

// Forward or backward variables of a frame: mantissas and exponents of the blanks, then of the labels.
template <class A>
struct CtcFrame {
  using Number = Scaled<Scalar<A>>;
  A* memory;
  Index width;  // blanks, of which there is one more than labels

  FUSEDRNN_INLINE static constexpr Index size(Index width) { return 4 * width; }
  FUSEDRNN_INLINE Number blank(Index i) const { return get(i); }
  FUSEDRNN_INLINE Number label(Index i) const { return get(2 * width + i); }
  FUSEDRNN_INLINE void set_blank(Index i, Number value) const { set(i, value); }
  FUSEDRNN_INLINE void set_label(Index i, Number value) const { set(2 * width + i, value); }

 private:
  FUSEDRNN_INLINE Number get(Index at) const { return {Scalar<A>(memory[at]), Scalar<A>(memory[at + width])}; }
  FUSEDRNN_INLINE void set(Index at, Number value) const {
    memory[at] = value.mantissa.value;
    memory[at + width] = value.exponent.value;
  }
};

// What a block needs while it goes through the frames of a row.
template <class A>
struct CtcScratch {
  using Number = Scaled<Scalar<A>>;
  A* memory;
  Index width;

  FUSEDRNN_INLINE static Index size(Index width) { return (2 * 4 + 2 * kCtcTile + 1) * width; }
  FUSEDRNN_INLINE CtcFrame<A> frame(Index number) const {
    return {memory + number % 2 * CtcFrame<A>::size(width), width};
  }
  // Probabilities of the labels at a frame of the tile, and of the blank, which stands behind the longest targets.
  FUSEDRNN_INLINE Number emission(Index t, Index i) const {
    const A* const at = emissions(t) + i;
    return {Scalar<A>(at[0]), Scalar<A>(at[width])};
  }
  FUSEDRNN_INLINE void set_emission(Index t, Index i, Number value) const {
    A* const at = emissions(t) + i;
    at[0] = value.mantissa.value;
    at[width] = value.exponent.value;
  }
  // 1 where label i may follow label i - 1, else 0; nan where the target is no label.
  FUSEDRNN_INLINE A& skip(Index i) const { return memory[(2 * 4 + 2 * kCtcTile) * width + i]; }

 private:
  FUSEDRNN_INLINE A* emissions(Index t) const { return memory + (2 * 4 + t % kCtcTile * 2) * width; }
};

// What the programs that go through the frames of a row have in common.
template <class T>
struct CtcRow {
  using A = Accumulator<T>;
  using Number = Scaled<Scalar<A>>;
  CtcBatch<T> batch;
  A* scratch;  // (B, CtcScratch::size), or null: in the block's memory

  FUSEDRNN_DEVICE CtcScratch<A> scratch_of(Block& block, Index b) const {
    const Index width = batch.longest + 1;
    A* const memory = scratch ? scratch + b * CtcScratch<A>::size(width) : static_cast<A*>(block.shared());
    return {memory, width};
  }
  // f(i) for the blanks 0 .. length and the labels of the same numbers that a thread has.
  template <class Function>
  FUSEDRNN_DEVICE void own(const Block& block, int thread, Index length, const Function& f) const {
    for (Index i = thread; i <= length; i += block.threads()) f(i);
  }
  FUSEDRNN_DEVICE void set_skip(const CtcScratch<A>& s, const std::int64_t* targets, Index length, Index i) const {
    const bool is_label = i == length || (batch.is_class(targets[i]) && targets[i] != batch.blank);
    s.skip(i) = !is_label ? A(NAN) : i > 0 && i < length && targets[i] != targets[i - 1] ? A(1) : A(0);
  }
  // The probabilities of the tile that frame t is in, up to the row's last frame.
  FUSEDRNN_DEVICE void emit(Block& block, const CtcScratch<A>& s, Index b, Index t) const {
    const Index first = t - t % kCtcTile, steps = batch.steps_of(b), length = batch.length_of(b);
    const std::int64_t* const targets = batch.targets_of(b);
    block.each([&](int thread) {
      own(block, thread, length, [&](Index i) {
        const std::int64_t label = i < length ? targets[i] : batch.blank;
        A logit[kCtcTile];
        FUSEDRNN_UNROLL
        for (int k = 0; k < kCtcTile; ++k)
          logit[k] = first + k < steps && batch.is_class(label) ? widen(batch.frame(first + k, b)[label]) : A(0);
        FUSEDRNN_UNROLL
        for (int k = 0; k < kCtcTile; ++k)
          if (first + k < steps)
            s.set_emission(k, i < length ? i : batch.longest,
                           scaled_exp(Scalar<A>(batch.log_prob(first + k, b, logit[k]))));
      });
    });
  }
};

template <class T>
struct CtcForward : CtcRow<T> {
  using A = Accumulator<T>;
  using Number = Scaled<Scalar<A>>;
  using CtcRow<T>::batch;
  A* alphas;  // (T, B, CtcFrame::size) or null
  A* losses;

  FUSEDRNN_DEVICE void operator()(Block& block, Index b) const {
    const CtcScratch<A> s = this->scratch_of(block, b);
    const Index length = batch.length_of(b), steps = batch.steps_of(b);
    block.each([&](int thread) {
      this->own(block, thread, length, [&](Index i) {
        s.frame(0).set_blank(i, i == 0 ? Number{Scalar<A>(A(1)), Scalar<A>(A(0))} : Number::zero());
        s.frame(0).set_label(i, Number::zero());
        this->set_skip(s, batch.targets_of(b), length, i);
      });
    });
    for (Index t = 0; t < steps; ++t) {
      if (t % kCtcTile == 0) this->emit(block, s, b, t);
      block.each([&](int thread) { this->own(block, thread, length, [&](Index i) { advance(s, b, t, i, length); }); });
    }
    block.each([&](int thread) {
      if (thread == 0) losses[b] = loss_of(s, s.frame(steps), length);
    });
  }

 private:
  FUSEDRNN_DEVICE void advance(const CtcScratch<A>& s, Index b, Index t, Index i, Index length) const {
    const CtcFrame<A> before = s.frame(t), next = s.frame(t + 1);
    const Number stay = before.blank(i), own = before.label(i), left = i > 0 ? before.label(i - 1) : Number::zero();
    Number to_blank = (stay + left) * s.emission(t, batch.longest), to_label = Number::zero();
    if (i < length) to_label = sum(own, stay, s.skip(i) > 0 ? left : Number::zero()) * s.emission(t, i);
    if (t % kCtcTile == kCtcTile - 1) to_blank = to_blank.normalised(), to_label = to_label.normalised();
    next.set_blank(i, to_blank);
    next.set_label(i, to_label);
    if (!alphas) return;
    const CtcFrame<A> kept = {alphas + (t * batch.rows + b) * CtcFrame<A>::size(s.width), s.width};
    kept.set_blank(i, to_blank);
    kept.set_label(i, to_label);
  }
  FUSEDRNN_DEVICE A loss_of(const CtcScratch<A>& s, const CtcFrame<A>& last, Index length) const {
    A skips = 0;
    for (Index i = 0; i < length; ++i) skips += s.skip(i);
    if (skips != skips) return skips;
    const Number blank = last.blank(length), label = length > 0 ? last.label(length - 1) : Number::zero();
    return minus_log_sum(blank.mantissa.value, blank.exponent.value, label.mantissa.value, label.exponent.value);
  }
};

// The backward variables of the frames [first, end), last to first.
template <class T>
struct CtcBackward : CtcRow<T> {
  using A = Accumulator<T>;
  using Number = Scaled<Scalar<A>>;
  using CtcRow<T>::batch;
  const A* losses;
  A* betas;  // (end - first, B, CtcFrame::size)
  A* carry;  // (B, CtcFrame::size): from one chunk to the one before it in time
  Index first, end;

  // A frame's variables are sums of those of the next one times the probabilities there: these products are what a
  // block keeps. Those past the last frame are 1 for the last blank.
  FUSEDRNN_DEVICE void operator()(Block& block, Index b) const {
    const Index steps = batch.steps_of(b), last = smaller(end, steps) - 1;
    if (last < first || !(losses[b] < A(INFINITY))) return;
    const CtcScratch<A> s = this->scratch_of(block, b);
    const Index length = batch.length_of(b);
    const CtcFrame<A> carried = {carry + b * CtcFrame<A>::size(s.width), s.width};
    block.each([&](int thread) {
      this->own(block, thread, length, [&](Index i) {
        const CtcFrame<A> products = s.frame(last + 1);
        const bool begins = last == steps - 1;
        const Number one = {Scalar<A>(A(1)), Scalar<A>(A(0))};
        products.set_blank(i, !begins ? carried.blank(i) : i == length ? one : Number::zero());
        products.set_label(i, begins ? Number::zero() : carried.label(i));
        this->set_skip(s, batch.targets_of(b), length, i);
      });
    });
    for (Index t = last; t >= first; --t) {
      if (t == last || t % kCtcTile == kCtcTile - 1) this->emit(block, s, b, t);
      block.each([&](int thread) { this->own(block, thread, length, [&](Index i) { retreat(s, b, t, i, length); }); });
    }
    block.each([&](int thread) {
      this->own(block, thread, length, [&](Index i) {
        carried.set_blank(i, s.frame(first).blank(i));
        carried.set_label(i, s.frame(first).label(i));
      });
    });
  }

 private:
  FUSEDRNN_DEVICE void retreat(const CtcScratch<A>& s, Index b, Index t, Index i, Index length) const {
    const CtcFrame<A> from = s.frame(t + 1), to = s.frame(t);
    const Number own = from.label(i);
    Number to_blank = from.blank(i) + own, to_label = Number::zero();
    if (i < length) to_label = sum(own, from.blank(i + 1), s.skip(i + 1) > 0 ? from.label(i + 1) : Number::zero());
    if (t % kCtcTile == 0) to_blank = to_blank.normalised(), to_label = to_label.normalised();
    const CtcFrame<A> kept = {betas + ((t - first) * batch.rows + b) * CtcFrame<A>::size(s.width), s.width};
    kept.set_blank(i, to_blank);
    kept.set_label(i, to_label);
    to.set_blank(i, to_blank * s.emission(t, batch.longest));
    to.set_label(i, i < length ? to_label * s.emission(t, i) : Number::zero());
  }
};

// Where the label of a target stands next in its row, or -1; and whether it stands there for the first time.
struct CtcChain {
  std::int64_t* next;
  bool* is_first;
};
template <class T>
struct CtcMakeChain {
  CtcBatch<T> batch;
  CtcChain chain;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index b, Index i) const {
    const Index length = batch.length_of(b);
    if (i >= length) return;
    const std::int64_t* const targets = batch.targets_of(b);
    Index after = i + 1, before = i - 1;
    while (after < length && targets[after] != targets[i]) ++after;
    while (before >= 0 && targets[before] != targets[i]) --before;
    chain.next[b * batch.longest + i] = after < length ? after : -1;
    chain.is_first[b * batch.longest + i] = before < 0;
  }
};

// The gradient of each row's loss.
template <class T>
struct CtcScale {
  using A = Accumulator<T>;
  CtcBatch<T> batch;
  const A* dloss;
  Index dloss_row;
  bool mean;
  A* scale;  // (B,)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index b) const {
    const A given = dloss[b * dloss_row];
    scale[b] = mean ? given / (A(larger(batch.length_of(b), 1)) * A(batch.rows)) : given;
  }
};

// The gradient of one frame of a row: how probable each class is, less how much of that the paths account for.
template <class T>
struct CtcGradient {
  using A = Accumulator<T>;
  using Number = Scaled<Scalar<A>>;
  CtcBatch<T> batch;
  const A* losses;
  A* alphas;  // only read
  const A* scale;
  CtcChain chain;
  A* betas;  // of the frames from `first`; the mantissas of labels are overwritten
  Index first;
  T* dlogits;  // (T, B, C)

  static constexpr std::size_t kSharedBytes = 3 * kFrameThreads * sizeof(A);

  FUSEDRNN_DEVICE void operator()(Block& block, Index index) const {
    const Index t = first + index / batch.rows, b = index % batch.rows, steps = batch.steps_of(b);
    if (t >= steps || !(losses[b] < A(INFINITY))) {
      const A value = t < steps && losses[b] != losses[b] ? losses[b] : A(0);
      return block.each([&](int thread) {
        for (Index c = thread; c < batch.classes; c += block.threads()) gradient(t, b)[c] = narrow<T>(value);
      });
    }
    A* const exponents = static_cast<A*>(block.shared());
    A *const blanks = exponents + block.threads(), *const labels = blanks + block.threads();
    block.each([&](int thread) {
      exponents[thread] = largest_exponent(t, b, thread, block.threads());
      for (Index c = thread; c < batch.classes; c += block.threads())
        gradient(t, b)[c] = narrow<T>(probability(t, b, c) * scale[b]);
    });
    block.each([&](int thread) {
      A most = exponents[0];
      for (int k = 1; k < block.threads(); ++k) most = exponents[k] > most ? exponents[k] : most;
      add_up(t, b, thread, block.threads(), Scalar<A>(most), blanks[thread], labels[thread]);
    });
    block.each([&](int thread) {
      if (thread > 0) return;
      A blank = 0, label = 0;
      for (int k = 0; k < block.threads(); ++k) blank += blanks[k], label += labels[k];
      blanks[0] = blank;
      labels[0] = scale[b] / (blank + label);
    });
    block.each([&](int thread) {
      const A factor = labels[0];
      if (thread == 0) subtract(t, b, batch.blank, blanks[0] * factor);
      const A* const paths = of_labels(t, b);
      for (Index i = thread; i < batch.length_of(b); i += block.threads()) {
        if (!chain.is_first[b * batch.longest + i]) continue;
        A part = 0;
        for (Index k = i; k >= 0; k = chain.next[b * batch.longest + k]) part += paths[k];
        subtract(t, b, batch.targets_of(b)[i], part * factor);
      }
    });
  }

 private:
  FUSEDRNN_DEVICE Index width() const { return batch.longest + 1; }
  FUSEDRNN_DEVICE CtcFrame<A> alpha(Index t, Index b) const {
    return {alphas + (t * batch.rows + b) * CtcFrame<A>::size(width()), width()};
  }
  FUSEDRNN_DEVICE CtcFrame<A> beta(Index t, Index b) const {
    return {betas + ((t - first) * batch.rows + b) * CtcFrame<A>::size(width()), width()};
  }
  // What the paths through each label account for, in the place of the mantissas of its backward variables.
  FUSEDRNN_DEVICE A* of_labels(Index t, Index b) const { return beta(t, b).memory + 2 * width(); }
  FUSEDRNN_DEVICE T* gradient(Index t, Index b) const { return dlogits + (t * batch.rows + b) * batch.classes; }
  FUSEDRNN_DEVICE A probability(Index t, Index b, Index c) const {
    return std::exp(batch.log_prob(t, b, widen(batch.frame(t, b)[c])));
  }
  FUSEDRNN_DEVICE void subtract(Index t, Index b, Index c, A part) const {
    gradient(t, b)[c] = narrow<T>(probability(t, b, c) * scale[b] - part);
  }

  FUSEDRNN_DEVICE A largest_exponent(Index t, Index b, int thread, int threads) const {
    A most = kExponentOfZero<A> * 2;
    for (Index i = thread, length = batch.length_of(b); i <= length; i += threads) {
      const A blank = (alpha(t, b).blank(i).exponent + beta(t, b).blank(i).exponent).value;
      const A label = (alpha(t, b).label(i).exponent + beta(t, b).label(i).exponent).value;
      most = larger_of(most, larger_of(blank, label));
    }
    return most;
  }
  FUSEDRNN_DEVICE static A larger_of(A a, A b) { return a > b ? a : b; }
  FUSEDRNN_DEVICE void add_up(Index t, Index b, int thread, int threads, Scalar<A> exponent, A& blanks,
                              A& labels) const {
    A blank = 0, all = 0;
    for (Index i = thread, length = batch.length_of(b); i <= length; i += threads) {
      blank += (alpha(t, b).blank(i) * beta(t, b).blank(i)).at(exponent).value;
      if (i == length) continue;
      const A label = (alpha(t, b).label(i) * beta(t, b).label(i)).at(exponent).value;
      of_labels(t, b)[i] = label;
      all += label;
    }
    blanks = blank;
    labels = all;
  }
};

// The losses of the rows as they are wanted: each, their sum, or their mean.
template <class T>
struct CtcReduce {
  using A = Accumulator<T>;
  CtcBatch<T> batch;
  const A* losses;
  A* loss;
  bool mean, zero_infinity;

  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index b) const { loss[b] = of_row(b); }
  FUSEDRNN_DEVICE void operator()(Block& block, Index) const {
    double* const partial = static_cast<double*>(block.shared());
    block.each([&](int thread) {
      double sum = 0;
      for (Index b = thread; b < batch.rows; b += block.threads())
        sum += double(of_row(b)) / (mean ? double(larger(batch.length_of(b), 1)) : 1.0);
      partial[thread] = sum;
    });
    block.each([&](int thread) {
      if (thread > 0) return;
      double sum = 0;
      for (int k = 0; k < block.threads(); ++k) sum += partial[k];
      *loss = static_cast<A>(mean ? sum / double(batch.rows) : sum);
    });
  }

 private:
  FUSEDRNN_INLINE A of_row(Index b) const { return zero_infinity && losses[b] == A(INFINITY) ? A(0) : losses[b]; }
};

template <class T>
class CtcLoss {
  using A = Accumulator<T>;

 public:
  explicit CtcLoss(const CtcLossCall& loss) : call(loss), batch(loss), width(loss.longest + 1) {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void forward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, nullptr, false);
    if (call.path) return find_path(backend);
    normalize(backend, batch);
    backend.for_each_block(call.rows, row_threads(), row_bytes(),
                           CtcForward<T>{{batch, scratch}, static_cast<A*>(call.alphas), losses()});
    reduce(backend);
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, nullptr, false);
    backend.for_each(1, call.rows, call.longest, CtcMakeChain<T>{batch, chain});
    backend.for_each(1, 1, call.rows,
                     CtcScale<T>{batch, static_cast<const A*>(call.dloss), call.dloss_row, call.reduction == 0, scale});
    for (Index end = call.steps; end > 0; end = std::max<Index>(end - chunk, 0)) {
      const Index first = std::max<Index>(end - chunk, 0);
      backend.for_each_block(call.rows, row_threads(), row_bytes(),
                             CtcBackward<T>{{batch, scratch}, losses(), betas, carry, first, end});
      backend.for_each_block((end - first) * call.rows, kFrameThreads, CtcGradient<T>::kSharedBytes,
                             CtcGradient<T>{batch, losses(), static_cast<A*>(call.alphas), scale, chain, betas, first,
                                            static_cast<T*>(call.dlogits)});
    }
  }

 private:
  const CtcLossCall& call;
  const CtcBatch<T> batch;
  const Index width;
  Index chunk;  // frames
  A *scratch, *betas, *carry, *scale;
  CtcChain chain;
  double* scores;
  signed char* advances;

  A* losses() const { return static_cast<A*>(call.losses); }
  // Of a block that has a row: all that it needs in its own memory, where that is large enough.
  std::size_t scratch_bytes() const { return static_cast<std::size_t>(CtcScratch<A>::size(width)) * sizeof(A); }
  bool fits() const { return scratch_bytes() <= static_cast<std::size_t>(Backend::shared_bytes()); }
  std::size_t row_bytes() const { return fits() ? scratch_bytes() : 0; }
  int row_threads() const { return static_cast<int>(std::min<Index>((width + 31) / 32 * 32, kMostBlockThreads)); }

  template <class Number>
  void normalize(Backend& backend, const CtcBatch<T, Number>& frames) const {
    backend.for_each_block(ctc_frame_blocks(call), kFrameThreads, 2 * kFrameThreads * sizeof(Number),
                           CtcNormalize<T, Number>{frames, ctc_lanes(call.classes)});
  }

  bool aligns() const { return call.path && call.losses; }
  void find_path(Backend& backend) const {
    if (aligns()) {
      const CtcBatch<T, double> wide(call);
      normalize(backend, wide);
      backend.for_each_block(call.rows, row_threads(), 0, CtcBestPath<T>{wide, scores, advances, call.path, losses()});
    } else {
      backend.for_each_block(ctc_frame_blocks(call), kFrameThreads, CtcBestClass<T>::kSharedBytes,
                             CtcBestClass<T>{batch, ctc_lanes(call.classes), call.path});
    }
  }

  void reduce(Backend& backend) const {
    const CtcReduce<T> losses_wanted = {batch, losses(), static_cast<A*>(call.loss), call.reduction == 0,
                                        call.zero_infinity};
    if (call.reduction == 2)
      backend.for_each(1, 1, call.rows, losses_wanted);
    else
      backend.for_each_block(1, kFrameThreads, kFrameThreads * sizeof(double), losses_wanted);
  }

  void lay_out(Arena& arena) {
    const bool differentiates = call.dloss != nullptr;
    const Index frame_bytes = std::max<Index>(call.rows * CtcFrame<A>::size(width) * Index(sizeof(A)), 1);
    chunk = std::clamp<Index>(Backend::chunk_bytes(kCtcChunkBytes) / frame_bytes, 1, std::max<Index>(call.steps, 1));
    scores = arena.take<double>(aligns() ? call.rows : 0, 4, width);
    advances = arena.take<signed char>(aligns() ? call.steps : 0, call.rows, 2, width);
    scratch = arena.take<A>(fits() || call.path ? 0 : call.rows, CtcScratch<A>::size(width));
    betas = arena.take<A>(differentiates ? chunk : 0, call.rows, CtcFrame<A>::size(width));
    carry = arena.take<A>(differentiates ? call.rows : 0, CtcFrame<A>::size(width));
    scale = arena.take<A>(differentiates ? call.rows : 0);
    chain.next = arena.take<std::int64_t>(differentiates ? call.rows : 0, call.longest);
    chain.is_first = arena.take<bool>(differentiates ? call.rows : 0, call.longest);
  }
};

}  // namespace
}  // namespace fusedrnn
