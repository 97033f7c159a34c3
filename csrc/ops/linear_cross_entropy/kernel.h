// Softmax cross-entropy readout: logits_n = x_n W^T + b, loss_n = log(sum_v exp(logits_nv)) - logits_n,target(n);
// dloss/dlogits_n = softmax(logits_n) - onehot(target(n)). The logits exist a chunk at a time and are computed again in
// the backward pass. The products are those of linear/kernel.h, and stop as they do.
#pragma once
#include "ops/linear/kernel.h"
#include "ops/linear/normaliser.h"
#include "ops/linear_cross_entropy/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real, class Tile = FmaTile<Real>>
class LinearCrossEntropy : LinearProducts<Real, Tile> {
  using Base = LinearProducts<Real, Tile>;
  using Base::blocks, Base::w;
  using V = Vec<Real>;
  // A class that is not there has probability 0.
  static constexpr Real kAbsent = -Real(__builtin_inf());

 public:
  LinearCrossEntropy(const LinearCrossEntropyArguments<Real>& arguments, Worker& worker)
      : Base(arguments, worker), a(arguments) {}

  void forward() {
    Base::pack(kAbsent);
    w.meet();
    const Range mine = part_of(a.rows, w.thread, w.threads());
    const Blocked<Real> logits = {a.products + w.thread * a.chunk_blocks * a.chunk_rows * kBlock, a.chunk_rows, kBlock};
    for (Index n = mine.first; n < mine.last; n += a.chunk_rows) {
      if (w.skip(0)) return;
      forward_rows({n, smaller(n + a.chunk_rows, mine.last)}, logits);
    }
  }

  void backward() {
    Base::pack(kAbsent);
    Base::pack_transposed();
    w.meet();
    const Range mine = part_of(blocks, w.thread, w.threads());
    const Blocked<Real> logits = {a.products, a.chunk_rows, kBlock};
    Index last = a.rows, chunk = 0;
    for (; last > 0; last = larger(0, last - a.chunk_rows), ++chunk) {
      if (!w.go_on(chunk)) return;
      const Range rows = {larger(0, last - a.chunk_rows), last};
      Base::stage_x(rows);
      Base::multiply(rows, mine.first, mine.last, 0, logits);
      for (Index v = mine.first; v < mine.last && !w.skip((rows.last - rows.first) * kPackedElement); ++v)
        differentiate(rows, v, logits);
      w.meet();
      Base::input_gradient(rows, logits);
      Base::weight_gradient(rows, mine, logits, chunk > 0);
      w.meet();
    }
  }

 private:
  const LinearCrossEntropyArguments<Real>& a;
  // Runs over the classes chunk by chunk with a running maximum and sum per row.
  void forward_rows(Range rows, const Blocked<Real>& logits) {
    Normaliser<Real> normaliser[kForwardRows];
    Real hit[kForwardRows] = {};
    const Index count = rows.last - rows.first;
    for (Index v = 0; v < blocks; v += a.chunk_blocks) {
      const Index end = smaller(v + a.chunk_blocks, blocks);
      Base::multiply(rows, v, end, v, logits);
      if (w.skip(0)) return;
      for (Index i = 0; i < count; ++i) {
        normaliser[i].add(logits, i, end - v);
        const Index target = a.targets[rows.first + i] - v * kBlock;
        if (target >= 0 && target < (end - v) * kBlock) hit[i] = logits.at(target / kBlock, i)[target % kBlock];
      }
    }
    for (Index i = 0; i < count; ++i) {
      const Index n = rows.first + i;
      a.maximum[n] = normaliser[i].maximum;
      a.log_sum[n] = natural_log(normaliser[i].sum);
      a.losses[n] = a.targets[n] < 0 ? Real(0) : (a.maximum[n] - hit[i]) + a.log_sum[n];
    }
  }

  // Turns logits of one block of classes into their gradients, in place.
  void differentiate(Range rows, Index block, const Blocked<Real>& logits) {
    for (Index n = rows.first; n < rows.last; ++n) {
      Real* row = logits.at(block, n - rows.first);
      const bool ignored = a.targets[n] < 0;
      for (Index u = 0; u < kBlock; u += V::lanes) {
        const V probability = exp((V::load(row + u) - V(a.maximum[n])) - V(a.log_sum[n]));
        (ignored ? V(Real(0)) : probability * V(a.scale[n])).store(row + u);
      }
      const Index target = a.targets[n] - block * kBlock;
      if (!ignored && target >= 0 && target < kBlock) row[target] -= a.scale[n];
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
