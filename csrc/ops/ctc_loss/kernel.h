// Connectionist temporal classification (Graves et al. 2006): the loss -log p(targets | logits), and its gradient.
// The labels l_1 .. l_S stand between S + 1 blanks; a path goes from state to state in that row, once a frame:
//   blank_i   from blank_i and label_{i-1};   label_i from label_i, blank_i and, where it differs, label_{i-1}
// with blank_i the one before label_i. alpha_t(s) is the probability of all ways to be in state s at frame t, that of
// the frame included; beta_t(s) that of all ways on from there. Both are scaled numbers (common/scaled.h), one row a
// thread.
//   p(targets) = sum of alpha_t(s) beta_t(s) over s, for every t
//   dloss / dlogits_t(c) = softmax_t(c) - sum of alpha_t(s) beta_t(s) / p(targets) over the states s of class c
#pragma once
#include "cpu/runtime/worker.h"
#include "cpu/simd/exponents.h"
#include "cpu/simd/rows.h"
#include "ops/ctc_loss/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class CtcLoss {
  using V = Vec<Real>;
  using Number = Scaled<V>;
  static constexpr Index kLanes = V::lanes;
  // Frames after which mantissas are brought back to [1, 2): in between they stay within 2^-8 and 2^34.
  static constexpr Index kNormalise = 16;

  // Forward or backward variables of a frame.
  struct Frame {
    Real *blank, *blank_exponent, *label, *label_exponent;
    Number blanks(Index i) const { return load_scaled(blank + i, blank_exponent + i); }
    Number labels(Index i) const { return load_scaled(label + i, label_exponent + i); }
    void set_blanks(Index i, Number value) const { store_scaled(value, blank + i, blank_exponent + i); }
    void set_labels(Index i, Number value) const { store_scaled(value, label + i, label_exponent + i); }
  };

 public:
  CtcLoss(const CtcLossArguments<Real>& arguments, Worker& worker)
      : a(arguments), w(worker), workspace(a.workspace + w.thread * a.workspace_size) {}

  void forward() {
    each_row([this](Index b) { a.losses[b] = forward_row(b); });
  }
  void backward() {
    each_row([this](Index b) { backward_row(b); });
  }

 private:
  const CtcLossArguments<Real>& a;
  Worker& w;
  Real* const workspace;
  // Of the row at hand.
  Index length = 0;
  const std::int64_t* targets = nullptr;
  Frame emission;              // probabilities of a frame: of the labels; of the blank in every lane
  Real *skip, *skip_exponent;  // 1 where label_i may follow label_{i-1}, else 0; as a scaled number
  Real* gathered;

  template <class Row>
  void each_row(const Row& row) {
    for (int part = w.thread; part < a.parts; part += w.threads())
      for (Index b = a.first_row[part]; b < a.first_row[part + 1] && !w.stopped(); ++b) {
        begin_row(b);
        row(b);
      }
  }

  static Frame frame_at(Real* memory, Index length) {
    const Index blanks = ctc_blanks(length), labels = ctc_labels(length);
    return {memory, memory + blanks, memory + 2 * blanks, memory + 2 * blanks + labels};
  }
  Real* workspace_frame(int number) const { return workspace + number * ctc_frame(length); }

  void begin_row(Index b) {
    length = a.row[b].length;
    targets = a.row[b].targets;
    emission = frame_at(workspace_frame(0), length);
    const Frame transitions = frame_at(workspace_frame(1), length);
    skip = transitions.label, skip_exponent = transitions.label_exponent, gathered = transitions.blank;
    for (Index i = 0; i < ctc_labels(length); ++i) {
      const bool allowed = i > 0 && i < length && targets[i] != targets[i - 1];
      skip[i] = allowed ? Real(1) : Real(0);
      skip_exponent[i] = allowed ? Real(0) : kExponentOfZero<Real>;
    }
  }
  void clear(const Frame& frame) const {
    for (Index i = 0; i < ctc_blanks(length); i += kLanes) frame.set_blanks(i, Number::zero());
    for (Index i = 0; i < ctc_labels(length); i += kLanes) frame.set_labels(i, Number::zero());
  }
  Number skips(Index i) const { return load_scaled(skip + i, skip_exponent + i); }

  // The probabilities of the targets' labels at a frame, and of the blank.
  void emit(const Real* logits, Real maximum, Real log_sum) {
    const Real lowest = -Real(__builtin_inf());
    const bool any = maximum != lowest || log_sum != log_sum;  // else all classes are impossible
    Index i = 0;
    for (; i < length; ++i) gathered[i] = logits[targets[i]];
    for (; i < ctc_blanks(length); ++i) gathered[i] = lowest;
    for (i = 0; i <= length; i += kLanes)
      emission.set_labels(i, any ? scaled_exp((V::load(gathered + i) - V(maximum)) - V(log_sum)) : Number::zero());
    emission.set_blanks(0, any ? scaled_exp((V(logits[a.blank]) - V(maximum)) - V(log_sum)) : Number::zero());
  }

  Real forward_row(Index b) {
    const CtcRow& row = a.row[b];
    Frame before = frame_at(workspace_frame(2), length);
    clear(before);
    before.blank[0] = Real(1), before.blank_exponent[0] = Real(0);
    for (Index t = 0; t < row.steps; ++t) {
      if (w.skip(a.classes / 4 + length)) return Real(0);
      const Real* logits = a.logits.at(t, b);
      const Real maximum = row_maximum(logits, a.classes);
      const Real log_sum = log_sum_of(logits, maximum);
      a.maximum[t * a.rows + b] = maximum;
      a.log_sum[t * a.rows + b] = log_sum;
      emit(logits, maximum, log_sum);
      const Frame next =
          frame_at(a.alphas ? a.alphas + row.alphas + t * ctc_frame(length) : workspace_frame(2 + (t + 1) % 2), length);
      advance(before, next, t % kNormalise == kNormalise - 1);
      before = next;
    }
    return loss_of(before);
  }

  // Of the exponentials, relative to the largest logit. The maximum passes over nan: where all are nan or -inf, it does
  // not tell an impossible frame from one that is no number.
  Real log_sum_of(const Real* logits, Real maximum) const {
    if (maximum != -Real(__builtin_inf())) return natural_log(row_exponential_sum(logits, a.classes, maximum));
    for (Index c = 0; c < a.classes; ++c)
      if (logits[c] != logits[c]) return logits[c];
    return Real(0);
  }

  // Element 0 of `label` stands for no label: it is zero.
  void advance(const Frame& before, const Frame& next, bool normalise) const {
    const Number blank = emission.blanks(0);
    next.label[0] = Real(0), next.label_exponent[0] = kExponentOfZero<Real>;
    for (Index i = 0; i <= length; i += kLanes) {
      const Number stay = before.blanks(i), left = before.labels(i), own = before.labels(i + 1);
      Number to_blank = (stay + left) * blank, to_label = sum(own, stay, left * skips(i)) * emission.labels(i);
      if (normalise) to_blank = to_blank.normalised(), to_label = to_label.normalised();
      next.set_blanks(i, to_blank);
      next.set_labels(i + 1, to_label);
    }
  }

  Real loss_of(const Frame& last) const {
    return minus_log_sum(last.blank[length], last.blank_exponent[length], last.label[length],
                         last.label_exponent[length]);
  }

  void backward_row(Index b) {
    const CtcRow& row = a.row[b];
    const Real loss = a.losses[b], infinite = Real(__builtin_inf());
    for (Index t = row.steps; t < a.steps; ++t) fill(a.dlogits.at(t, b), Real(0));
    if (loss == infinite || loss != loss) {
      for (Index t = 0; t < row.steps; ++t) fill(a.dlogits.at(t, b), loss == infinite ? Real(0) : loss);
      return;
    }
    const Frame betas = frame_at(workspace_frame(2), length);
    clear(betas);
    betas.blank[length] = Real(1), betas.blank_exponent[length] = Real(0);
    if (length > 0) betas.label[length - 1] = Real(1), betas.label_exponent[length - 1] = Real(0);
    for (Index t = row.steps - 1; t >= 0; --t) {
      if (w.skip(a.classes / 4 + 2 * length)) return;
      const Real* logits = a.logits.at(t, b);
      const Real maximum = a.maximum[t * a.rows + b], log_sum = a.log_sum[t * a.rows + b];
      differentiate(logits, maximum, log_sum, a.scale[b],
                    frame_at(a.alphas + row.alphas + t * ctc_frame(length), length), betas, a.dlogits.at(t, b));
      if (t == 0) return;
      emit(logits, maximum, log_sum);
      retreat(betas, t % kNormalise == 0);
    }
  }
  void fill(Real* row, Real value) const {
    for (Index c = 0; c < a.classes; ++c) row[c] = value;
  }

  // To the frame before. Element i of `label` is label_i here. What is read past the end of an array reaches only lanes
  // that are no label's, and their emission is zero.
  void retreat(const Frame& betas, bool normalise) const {
    const Number blank = emission.blanks(0);
    for (Index i = 0; i <= length; i += kLanes) {
      betas.set_blanks(i, betas.blanks(i) * blank);
      betas.set_labels(i, betas.labels(i) * emission.labels(i));
    }
    for (Index i = 0; i <= length; i += kLanes) {
      const Number own = betas.labels(i), next_blank = betas.blanks(i + 1), next_label = betas.labels(i + 1);
      Number to_blank = betas.blanks(i) + own, to_label = sum(own, next_blank, next_label * skips(i + 1));
      if (normalise) to_blank = to_blank.normalised(), to_label = to_label.normalised();
      betas.set_blanks(i, to_blank);
      betas.set_labels(i, to_label);
    }
  }

  // One frame's gradient: how probable each class is, less how much of that the paths account for.
  void differentiate(const Real* logits, Real maximum, Real log_sum, Real scale, const Frame& alphas,
                     const Frame& betas, Real* gradient) const {
    each_vector(logits, a.classes, -Real(__builtin_inf()), [&](Index, Index first, int count, V value) {
      const V probability = exp((value - V(maximum)) - V(log_sum)) * V(scale);
      count == kLanes ? probability.store(gradient + first) : probability.store_partial(gradient + first, count);
    });
    Partials<Real> largest(kExponentOfZero<Real> * 2);
    for (Index i = 0; i <= length; i += kLanes) {
      V& exponent = largest.part[i / kLanes % Partials<Real>::kVectors];
      exponent = at_least(exponent, V::load(alphas.blank_exponent + i) + V::load(betas.blank_exponent + i));
      exponent = at_least(exponent, V::load(alphas.label_exponent + i + 1) + V::load(betas.label_exponent + i));
    }
    const V exponent(largest.maximum());
    Partials<Real> blanks(Real(0)), labels(Real(0));
    for (Index i = 0; i <= length; i += kLanes) {
      const Index k = i / kLanes % Partials<Real>::kVectors;
      blanks.part[k] += (alphas.blanks(i) * betas.blanks(i)).at(exponent);
      const V label = (alphas.labels(i + 1) * betas.labels(i)).at(exponent);
      labels.part[k] += label;
      label.store(gathered + i);
    }
    const Real blank = blanks.sum(), factor = scale / (blank + labels.sum());
    gradient[a.blank] -= blank * factor;
    for (Index i = 0; i < length; ++i) gradient[targets[i]] -= gathered[i] * factor;
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
