// Softmax cross-entropy readout: logits_n = x_n W^T + b, loss_n = log(sum_v exp(logits_nv)) - logits_n,target(n);
// dloss/dlogits_n = softmax(logits_n) - onehot(target(n)). The logits exist a chunk at a time and are computed again in
// the backward pass. Rows are independent of the chunk they fall in. A single chunk may take seconds: every loop looks
// whether to stop, and a thread that does goes on to the next barrier, where the others may be waiting.
#pragma once
#include "core/cross_entropy.h"
#include "cpu/gradients.h"

namespace fusedrnn {
namespace {

inline float natural_log(float x) { return __builtin_logf(x); }
inline double natural_log(double x) { return __builtin_log(x); }
inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }

// How many multiply-adds take as long as one element packed, which comes from memory.
constexpr Index kPackedElement = 32;

template <class Real>
class CrossEntropy {
  using V = Vec<Real>;
  static constexpr Index kVectors = kBlock / V::lanes;

 public:
  CrossEntropy(const CrossEntropyArguments<Real>& arguments, Worker& worker)
      : a(arguments), w(worker), blocks(blocks_of(a.classes)) {}

  void forward() {
    pack();
    w.meet();
    const Range mine = part_of(a.rows, w.thread, w.threads());
    const Blocked<Real> logits = {a.logits + w.thread * a.chunk_blocks * a.chunk_rows * kBlock, a.chunk_rows, kBlock};
    for (Index n = mine.first; n < mine.last; n += a.chunk_rows) {
      if (w.skip(0)) return;
      forward_rows({n, smaller(n + a.chunk_rows, mine.last)}, logits);
    }
  }

  void backward() {
    pack();
    pack_transposed();
    w.meet();
    const Range mine = part_of(blocks, w.thread, w.threads());
    const Blocked<Real> logits = {a.logits, a.chunk_rows, kBlock};
    Index last = a.rows, chunk = 0;
    for (; last > 0; last = larger(0, last - a.chunk_rows), ++chunk) {
      if (!w.go_on(chunk)) return;
      const Range rows = {larger(0, last - a.chunk_rows), last};
      stage_x(rows);
      multiply(rows, mine.first, mine.last, 0, logits);
      for (Index v = mine.first; v < mine.last && !w.skip((rows.last - rows.first) * kPackedElement); ++v)
        differentiate(rows, v, logits);
      w.meet();
      input_gradient(rows, logits);
      weight_gradient(rows, mine, logits, chunk > 0);
      w.meet();
    }
  }

 private:
  const CrossEntropyArguments<Real>& a;
  Worker& w;
  const Index blocks;

  int classes_in(Index block) const { return static_cast<int>(smaller(kBlock, a.classes - block * kBlock)); }

  void pack() {
    const Range mine = part_of(blocks, w.thread, w.threads());
    for (Index block = mine.first; block < mine.last; ++block) {
      pack_forward(a.weight + block * kBlock * a.hidden_size, a.hidden_size, classes_in(block),
                   a.packed + block * a.hidden_size * kBlock);
      Real* bias = a.packed_bias + block * kBlock;
      for (int v = 0; v < kBlock; ++v)
        bias[v] = v >= classes_in(block) ? -Real(__builtin_inf()) : a.bias ? a.bias[block * kBlock + v] : Real(0);
      if (w.skip(a.hidden_size * kPackedElement)) return;
    }
  }
  void pack_transposed() {
    const Range mine = part_of(blocks_of(a.hidden_size), w.thread, w.threads());
    const Index stride = blocks * kBlock * kBlock;
    for (Index j = mine.first; j < mine.last; j += kColumns) {
      const Index count = smaller(kColumns, mine.last - j);
      if (w.skip(count * blocks * kBlock * kPackedElement)) return;
      pack_backward(a.weight, a.hidden_size, j, count, a.classes, Window{0, 1, {0}}, a.packed_backward + j * stride,
                    stride);
    }
  }

  // Logits of the class blocks [first, last) into a buffer that begins at block `origin`.
  void multiply(Range rows, Index first, Index last, Index origin, const Blocked<Real>& logits) {
    for (Index v = first; v < last; v += kColumns) {
      const Index count = smaller(kColumns, last - v);
      const Real* bias[kColumns];
      Real* out[kColumns];
      for (Index i = 0; i < count; ++i) {
        bias[i] = a.packed_bias + (v + i) * kBlock;
        out[i] = logits.at(v + i - origin, 0);
      }
      Product<Real> product;
      product.length = a.hidden_size;
      product.right = a.packed + v * a.hidden_size * kBlock;
      product.right_block = a.hidden_size * kBlock;
      product.initial = bias;
      product.initial_row = 0;
      product.out = out;
      product.out_row = kBlock;
      for (Index n = rows.first; n < rows.last;) {
        const int tile = tile_rows(rows.last - n);
        const Real* left[kTileRows];
        for (int i = 0; i < tile; ++i) left[i] = a.x + (n + i) * a.hidden_size;
        gemm(tile, RowPointers<Real>{left, 0}, product, count);
        n += tile;
        for (Index i = 0; i < count; ++i) out[i] += tile * kBlock;
      }
      if (w.skip((rows.last - rows.first) * a.hidden_size * count)) return;
    }
  }

  // Runs over the classes chunk by chunk with a running maximum and sum per row.
  void forward_rows(Range rows, const Blocked<Real>& logits) {
    Real maximum[kForwardRows], sum[kForwardRows], hit[kForwardRows];
    const Index count = rows.last - rows.first;
    for (Index i = 0; i < count; ++i) {
      maximum[i] = -Real(__builtin_inf());
      sum[i] = hit[i] = Real(0);
    }
    for (Index v = 0; v < blocks; v += a.chunk_blocks) {
      const Index end = smaller(v + a.chunk_blocks, blocks);
      multiply(rows, v, end, v, logits);
      if (w.skip(0)) return;
      for (Index i = 0; i < count; ++i) {
        add_row(logits, i, end - v, maximum[i], sum[i]);
        const Index target = a.targets[rows.first + i] - v * kBlock;
        if (target >= 0 && target < (end - v) * kBlock) hit[i] = logits.at(target / kBlock, i)[target % kBlock];
      }
    }
    for (Index i = 0; i < count; ++i) {
      const Index n = rows.first + i;
      a.maximum[n] = maximum[i];
      a.log_sum[n] = natural_log(sum[i]);
      a.losses[n] = a.targets[n] < 0 ? Real(0) : (maximum[i] - hit[i]) + a.log_sum[n];
    }
  }

  // Sixteen partial results at a time on every ISA, then one fixed order over the sixteen.
  void add_row(const Blocked<Real>& logits, Index row, Index count, Real& maximum, Real& sum) {
    V partial[kVectors];
    Real lane[kBlock];
    for (Index k = 0; k < kVectors; ++k) partial[k] = V(maximum);
    for (Index v = 0; v < count; ++v)
      for (Index k = 0; k < kVectors; ++k) partial[k] = at_least(partial[k], V::load(logits.at(v, row) + k * V::lanes));
    for (Index k = 0; k < kVectors; ++k) partial[k].store(lane + k * V::lanes);
    const Real before = maximum;
    for (Index u = 0; u < kBlock; ++u) maximum = lane[u] > maximum ? lane[u] : maximum;
    for (Index k = 0; k < kVectors; ++k) partial[k] = V(Real(0));
    for (Index v = 0; v < count; ++v)
      for (Index k = 0; k < kVectors; ++k) partial[k] += exp(V::load(logits.at(v, row) + k * V::lanes) - V(maximum));
    for (Index k = 0; k < kVectors; ++k) partial[k].store(lane + k * V::lanes);
    if (sum != Real(0)) sum *= exponential(before - maximum);
    for (Index u = 0; u < kBlock; ++u) sum += lane[u];
  }

  void stage_x(Range rows) {
    const Range mine = part_of(rows.last - rows.first, w.thread, w.threads());
    for (Index r = mine.first; r < mine.last; ++r)
      for (Index i = 0; i < blocks_of(a.hidden_size); ++i)
        copy_padded(a.x + (rows.first + r) * a.hidden_size + i * kBlock, a.hidden_size - i * kBlock,
                    a.x_panel.at(i, r));
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

  void input_gradient(Range rows, const Blocked<Real>& logits) {
    const Range mine = part_of(rows.last - rows.first, w.thread, w.threads());
    multiply_gradient(w, logits, 0, blocks, a.packed_backward, a.hidden_size, mine, [&](Index block) {
      Real* row = a.dx + (rows.first + mine.first) * a.hidden_size + block * kBlock;
      return [row, this]() mutable {
        Real* current = row;
        row += a.hidden_size;
        return current;
      };
    });
  }

  void weight_gradient(Range rows, Range mine, const Blocked<Real>& logits, bool adding) {
    const Index count = rows.last - rows.first;
    for (Index i = 0; i < blocks_of(a.hidden_size); i += kColumns)
      for (Index v = mine.first; v < mine.last; ++v) {
        if (w.skip(count * kBlock * kColumns)) return;
        accumulate_outer(logits, v, classes_in(v), a.x_panel, count, i, a.hidden_size, adding,
                         a.dweight + v * kBlock * a.hidden_size);
      }
    if (a.dbias)
      for (Index v = mine.first; v < mine.last; ++v)
        accumulate_rows(logits, v, classes_in(v), count, adding, a.dbias + v * kBlock, static_cast<Real*>(nullptr));
  }
};

}  // namespace
}  // namespace fusedrnn
