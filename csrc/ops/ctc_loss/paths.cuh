// Single paths through the states of CTC on a device (see kernel.cuh): the most probable one of given targets, and that
// of the most probable class of each frame; paths.cpp is the CPU's.
#pragma once
#include "ops/ctc_loss/batch.cuh"

namespace fusedrnn {
namespace {

// The most probable path of a row's targets and its log-probability, minus infinity where there is none, by Viterbi's
// algorithm in float64. A block has a row.
template <class T>
struct CtcBestPath {
  CtcBatch<T, double> batch;
  double* scores;         // (B, 2, 2, longest + 1): before and after a frame, of the blanks and of the labels
  signed char* advances;  // (T, B, 2, longest + 1): by how many states a frame advanced
  std::int64_t* path;     // (T, B)
  Accumulator<T>* found;  // (B,)

  FUSEDRNN_DEVICE void operator()(Block& block, Index b) const {
    const Index length = batch.length_of(b), frames = batch.steps_of(b);
    block.each([&](int thread) {
      for (Index i = thread; i <= length; i += block.threads()) {
        score(0, b, 0, i) = i == 0 ? 0 : never();
        score(0, b, 1, i) = never();
      }
    });
    for (Index t = 0; t < frames; ++t)
      block.each([&](int thread) {
        for (Index i = thread; i <= length; i += block.threads()) {
          reach_blank(t, b, i);
          if (i < length) reach_label(t, b, i);
        }
      });
    block.each([&](int thread) {
      for (Index t = frames + thread; t < batch.steps; t += block.threads()) path[t * batch.rows + b] = batch.blank;
      if (thread == 0) trace(b, frames, length);
    });
  }

 private:
  FUSEDRNN_DEVICE static double never() { return -double(INFINITY); }
  FUSEDRNN_DEVICE double& score(Index t, Index b, Index label, Index i) const {
    return scores[((b * 2 + t % 2) * 2 + label) * (batch.longest + 1) + i];
  }
  FUSEDRNN_DEVICE signed char& advance(Index t, Index b, Index label, Index i) const {
    return advances[((t * batch.rows + b) * 2 + label) * (batch.longest + 1) + i];
  }

  // States come from those of kernel.h; of equal ones from the nearest. Before the first frame a path is in blank 0.
  FUSEDRNN_DEVICE void reach_blank(Index t, Index b, Index i) const {
    const double stay = score(t, b, 0, i), left = i > 0 ? score(t, b, 1, i - 1) : never();
    go(t, b, 0, i, batch.blank, left > stay ? left : stay, left > stay ? 1 : 0);
  }
  FUSEDRNN_DEVICE void reach_label(Index t, Index b, Index i) const {
    const std::int64_t* const targets = batch.targets_of(b);
    double best = score(t, b, 1, i);
    int by = 0;
    if (score(t, b, 0, i) > best) best = score(t, b, 0, i), by = 1;
    if (i > 0 && targets[i] != targets[i - 1] && score(t, b, 1, i - 1) > best) best = score(t, b, 1, i - 1), by = 2;
    go(t, b, 1, i, targets[i], best, by);
  }
  FUSEDRNN_DEVICE void go(Index t, Index b, Index label, Index i, std::int64_t which, double before, int by) const {
    const double logit = batch.is_class(which) ? double(widen(batch.frame(t, b)[which])) : double(NAN);
    score(t + 1, b, label, i) = before + batch.log_prob(t, b, logit);
    advance(t, b, label, i) = static_cast<signed char>(by);
  }

  FUSEDRNN_DEVICE void trace(Index b, Index frames, Index length) const {
    Index state = 2 * length;  // blank i is state 2 i, label i the next one
    if (length > 0 && score(frames, b, 1, length - 1) > score(frames, b, 0, length)) --state;
    const double best = score(frames, b, state % 2, state / 2);
    found[b] = static_cast<Accumulator<T>>(best);
    if (!(best > never())) return;
    for (Index t = frames - 1; t >= 0; --t) {
      path[t * batch.rows + b] = state % 2 ? batch.targets_of(b)[state / 2] : batch.blank;
      state -= advance(t, b, state % 2, state / 2);
    }
  }
};

// The most probable class of each frame, of equal ones the first; the blank past a row's length.
template <class T>
struct CtcBestClass {
  using A = Accumulator<T>;
  CtcBatch<T> batch;
  int lanes;           // as CtcNormalize's
  std::int64_t* path;  // (T, B)

  static constexpr std::size_t kSharedBytes = kFrameThreads * (sizeof(std::int64_t) + sizeof(A));

  FUSEDRNN_DEVICE void operator()(Block& block, Index index) const {
    std::int64_t* const classes = static_cast<std::int64_t*>(block.shared());
    A* const values = reinterpret_cast<A*>(classes + block.threads());
    const Index first = index * (block.threads() / lanes);
    block.each([&](int thread) { find(first + thread / lanes, thread % lanes, values[thread], classes[thread]); });
    for (int width = lanes / 2; width > 0; width /= 2)
      block.each([&](int thread) {
        const int other = thread + width;
        if (thread % lanes >= width) return;
        const bool is_first = values[other] == values[thread] && classes[other] < classes[thread];
        if (!(values[other] > values[thread]) && !is_first) return;
        values[thread] = values[other];
        classes[thread] = classes[other];
      });
    block.each([&](int thread) {
      const Index frame = first + thread / lanes;
      if (thread % lanes == 0 && frame < batch.steps * batch.rows)
        path[frame] = batch.exists(frame) ? classes[thread] : batch.blank;
    });
  }

 private:
  FUSEDRNN_DEVICE void find(Index frame, int lane, A& value, std::int64_t& which) const {
    value = -A(INFINITY);
    which = smaller(lane, batch.classes - 1);
    if (!batch.exists(frame)) return;
    const T* const logits = batch.frame(frame / batch.rows, frame % batch.rows);
    for (Index c = lane; c < batch.classes; c += lanes)
      if (widen(logits[c]) > value) value = widen(logits[c]), which = c;
  }
};

}  // namespace
}  // namespace fusedrnn
