// The loss of a transducer on a device; kernel.h beside this is the CPU's and says what is computed. Hidden values and
// logits exist for a chunk of cells at a time, forward and backward, and what is summed up over cells is in the
// accumulator's type. A row with a target that is no label gives nan.
#pragma once
#include <algorithm>

#include "cuda/engine.h"
#include "cuda/runtime/arena.h"
#include "ops/linear/kernel.cuh"
#include "ops/transducer_loss/lattice.cuh"

namespace fusedrnn {
namespace {

constexpr Index kTransducerChunkBytes = Index(32) << 20;  // of a chunk's logits, hidden values and partial sums
constexpr int kTransducerReduceThreads = 128;

// The gradient of each row's loss.
template <class A>
struct TransducerScale {
  const A* dloss;
  Index dloss_row;
  A divisor;
  A* scale;  // (B,)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index b) const { scale[b] = dloss[b * dloss_row] / divisor; }
};

// The losses of the rows as they are wanted: their sum, or their mean.
template <class A>
struct TransducerReduce {
  const A* losses;
  Index rows;
  bool mean;
  A* loss;
  FUSEDRNN_DEVICE void operator()(Block& block, Index) const {
    double* const partial = static_cast<double*>(block.shared());
    block.each([&](int thread) {
      double sum = 0;
      for (Index b = thread; b < rows; b += block.threads()) sum += double(losses[b]);
      partial[thread] = sum;
    });
    reduce(block, partial, Sum<double>());
    block.each([&](int thread) {
      if (thread == 0) *loss = static_cast<A>(mean ? partial[0] / double(rows) : partial[0]);
    });
  }
};

template <class T>
class TransducerLoss {
  using A = Accumulator<T>;

 public:
  explicit TransducerLoss(const TransducerLossCall& loss)
      : call(loss), batch(loss), products{static_cast<const T*>(loss.weight), loss.in_features, loss.out_features} {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void forward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, false);
    for (Index first = 0; first < batch.cells(); first += chunk) {
      const Index count = std::min(chunk, batch.cells() - first);
      join(backend, first, count);
      backend.for_each(1, count, kClassParts, ClassPart<T>{logits, batch.bias, batch.classes, maxima, sums});
      backend.for_each(1, 1, count, TransducerEmit<T>{batch, first, logits, maxima, sums});
    }
    backend.for_each_block(batch.rows, row_threads(), 0, TransducerForward<T>{{batch}, true, alphas, losses()});
    if (call.reduction == 2)
      backend.for_each(1, 1, batch.rows, CopyRows<A, A>{losses(), 0, 0, static_cast<A*>(call.loss), 0, 0});
    else
      backend.for_each_block(
          1, kTransducerReduceThreads, kTransducerReduceThreads * sizeof(double),
          TransducerReduce<A>{losses(), batch.rows, call.reduction == 0, static_cast<A*>(call.loss)});
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, false);
    const A divisor = call.reduction == 0 ? static_cast<A>(std::max<Index>(batch.rows, 1)) : A(1);
    backend.for_each(1, 1, batch.rows,
                     TransducerScale<A>{static_cast<const A*>(call.dloss), call.dloss_row, divisor, scale});
    backend.for_each_block(batch.rows, row_threads(), 0, TransducerForward<T>{{batch}, false, alphas, nullptr});
    backend.for_each_block(
        batch.rows, row_threads(), static_cast<std::size_t>(row_threads()) * sizeof(A),
        TransducerOccupancies<T>{{batch}, alphas, betas, blanks, labels, losses(), to_blank, to_label});
    clear(backend);
    for (Index first = 0; first < batch.cells(); first += chunk)
      differentiate(backend, first, std::min(chunk, batch.cells() - first));
    finish(backend);
  }

 private:
  const TransducerLossCall& call;
  const TransducerBatch<T> batch;
  const LinearProducts<T> products;
  void* gemm_space;
  Index chunk;  // cells
  T *hidden, *dlogits;
  A *logits, *maxima, *sums, *scale, *dhidden, *dweight, *bias_parts, *dencoder, *dpredictor, *to_blank, *to_label;
  TransducerNumbers<A> alphas, betas, blanks, labels;

  A* losses() const { return static_cast<A*>(call.losses); }
  int row_threads() const {
    int threads = 32;
    while (threads < kMostBlockThreads && threads < batch.width()) threads *= 2;
    return threads;
  }

  void join(Backend& backend, Index first, Index count) const {
    backend.for_each(1, count, batch.features, TransducerJoin<T>{batch, first, hidden});
    products.forward(backend, hidden, count, logits);
  }

  void differentiate(Backend& backend, Index first, Index count) const {
    join(backend, first, count);
    backend.for_each(1, count, batch.classes,
                     TransducerSlope<T>{batch, first, logits, to_blank, to_label, scale, dlogits});
    products.input_sums(backend, dlogits, count, dhidden);
    products.add_weight_gradient(backend, dlogits, hidden, count, dweight);
    products.add_bias_gradient(backend, dlogits, count, bias_parts);
    const Index last = first + count - 1, frames = last / batch.width() - first / batch.width() + 1;
    backend.for_each(1, frames, batch.features, TransducerFrames<T>{batch, first, count, hidden, dhidden, dencoder});
    backend.for_each(batch.place(last).row - batch.place(first).row + 1, batch.width(), batch.features,
                     TransducerLabels<T>{{batch, first, count, hidden, dhidden, dpredictor}});
  }

  void clear(Backend& backend) const {
    products.clear_gradients(backend, dweight, bias_parts);
    backend.for_each(1, batch.steps * batch.rows, batch.features, Fill<A>{dencoder, batch.features});
    backend.for_each(1, batch.width() * batch.rows, batch.features, Fill<A>{dpredictor, batch.features});
  }
  void finish(Backend& backend) const {
    products.finish_gradients(backend, dweight, bias_parts, static_cast<T*>(call.dweight), static_cast<T*>(call.dbias));
    copy(backend, dencoder, batch.steps * batch.rows, call.dencoder);
    copy(backend, dpredictor, batch.width() * batch.rows, call.dpredictor);
  }
  void copy(Backend& backend, const A* from, Index rows, void* to) const {
    const Index features = batch.features;
    backend.for_each(1, rows, features, CopyRows<A, T>{from, 0, features, static_cast<T*>(to), 0, features});
  }

  TransducerNumbers<A> numbers(Arena& arena, Index count) const { return {arena.take<A>(2, count), count}; }
  void lay_out(Arena& arena) {
    const bool differentiates = call.dloss != nullptr;
    const Index each = differentiates ? 1 : 0, of_rows = batch.rows * batch.width();
    const Index of_cell = (batch.classes + 2 * batch.features + 2 * kClassParts) * Index(sizeof(A));
    chunk =
        std::clamp<Index>(Backend::chunk_bytes(kTransducerChunkBytes) / of_cell, 1, std::max<Index>(batch.cells(), 1));
    gemm_space = arena.take<char>(Backend::kGemmBytes);
    hidden = arena.take<T>(chunk, batch.features);
    logits = arena.take<A>(chunk, batch.classes);
    maxima = arena.take<A>(differentiates ? 0 : chunk, kClassParts);
    sums = arena.take<A>(differentiates ? 0 : chunk, kClassParts);
    alphas = numbers(arena, differentiates ? batch.cells() : 2 * of_rows);
    betas = numbers(arena, each * 2 * of_rows);
    blanks = numbers(arena, each * of_rows);
    labels = numbers(arena, each * of_rows);
    to_blank = arena.take<A>(each, batch.cells());
    to_label = arena.take<A>(each, batch.cells());
    scale = arena.take<A>(each, batch.rows);
    dlogits = arena.take<T>(each * chunk, batch.classes);
    dhidden = arena.take<A>(each * chunk, batch.features);
    dweight = arena.take<A>(each * batch.classes, batch.features);
    bias_parts = arena.take<A>(each * kParts, batch.classes);
    dencoder = arena.take<A>(each * batch.steps, batch.rows, batch.features);
    dpredictor = arena.take<A>(each * batch.width(), batch.rows, batch.features);
  }
};

}  // namespace
}  // namespace fusedrnn
