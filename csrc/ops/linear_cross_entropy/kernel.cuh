// Softmax cross-entropy of a linear readout on a device; kernel.h beside this is the CPU's. Logits exist a
// chunk of rows at a time. An ignored row's x is not multiplied into the weights' gradient, whatever it holds; a target
// that is no class gives a nan.
#pragma once
#include <cmath>

#include "ops/linear/class_parts.cuh"
#include "ops/linear/kernel.cuh"
#include "ops/linear_cross_entropy/arguments.h"

namespace fusedrnn {
namespace {

template <class T>
struct RowLoss {
  using A = Accumulator<T>;
  const A *logits, *maxima, *sums;
  const T* bias;
  Index classes, first;
  const std::int64_t* targets;
  std::int64_t ignore_index;
  A *maximum, *log_sum, *losses;  // (rows of the whole call,)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index r) const {
    const Index parts = classes < kClassParts ? classes : kClassParts;
    A most = -A(INFINITY), sum = 0;
    for (Index p = 0; p < parts; ++p) most = maxima[r * kClassParts + p] > most ? maxima[r * kClassParts + p] : most;
    for (Index p = 0; p < parts; ++p) sum += sums[r * kClassParts + p] * std::exp(maxima[r * kClassParts + p] - most);
    const Index n = first + r;
    const std::int64_t target = targets[n];
    maximum[n] = most;
    log_sum[n] = std::log(sum);
    if (target == ignore_index) {
      losses[n] = 0;
    } else if (target < 0 || target >= classes) {
      losses[n] = not_a_number<A>();
    } else {
      const A hit = logits[r * classes + target] + (bias ? widen(bias[target]) : A(0));
      losses[n] = (most - hit) + log_sum[n];
    }
  }
};

// Partial sums of losses and of targets that count, then the loss.
template <class A>
struct LossPart {
  const A* losses;
  const std::int64_t* targets;
  std::int64_t ignore_index;
  Index rows;
  A* partial;  // (2, kParts)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index part) const {
    A sum = 0, count = 0;
    for (Index n = part_begin(rows, part); n < part_begin(rows, part + 1); ++n) {
      sum += losses[n];
      count += targets[n] == ignore_index ? A(0) : A(1);
    }
    partial[part] = sum;
    partial[kParts + part] = count;
  }
};
template <class A>
struct FinishLoss {
  const A* partial;
  bool mean;
  A *loss, *counted;  // loss: null for reduction none
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index) const {
    A sum = 0, count = 0;
    for (Index part = 0; part < kParts; ++part) {
      sum += partial[part];
      count += partial[kParts + part];
    }
    *counted = count;
    if (loss) *loss = mean ? sum / count : sum;
  }
};

template <class T>
struct LogitGradient {
  using A = Accumulator<T>;
  const A* logits;
  const T* bias;
  Index classes, first;
  const std::int64_t* targets;
  std::int64_t ignore_index;
  const A *maximum, *log_sum, *counted, *dloss;
  Index dloss_row;
  bool mean;
  T* to;  // (rows, classes)
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index v) const {
    const Index n = first + r;
    const std::int64_t target = targets[n];
    A value = 0;
    if (target != ignore_index) {
      const A logit = logits[r * classes + v] + (bias ? widen(bias[v]) : A(0));
      const A scale = dloss[n * dloss_row] / (mean ? *counted : A(1));
      value = (std::exp((logit - maximum[n]) - log_sum[n]) - (v == target ? A(1) : A(0))) * scale;
      if (target < 0 || target >= classes) value = not_a_number<A>();
    }
    to[r * classes + v] = narrow<T>(value);
  }
};

template <class T>
struct CountedRows {
  const T* x;
  const std::int64_t* targets;
  std::int64_t ignore_index;
  Index first, width;
  T* to;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index c) const {
    const bool ignored = targets[first + r] == ignore_index;
    to[r * width + c] = ignored ? narrow<T>(Accumulator<T>(0)) : x[(first + r) * width + c];
  }
};

template <class T>
class LinearCrossEntropy {
  using A = Accumulator<T>;

 public:
  explicit LinearCrossEntropy(const LinearCrossEntropyCall& readout)
      : call(readout),
        hidden(readout.in_features),
        classes(readout.out_features),
        x(static_cast<const T*>(readout.x)),
        bias(static_cast<const T*>(readout.bias)),
        maximum(static_cast<A*>(readout.normalizers)),
        log_sum(maximum + readout.rows),
        counted(log_sum + readout.rows),
        products{static_cast<const T*>(readout.weight), hidden, classes} {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void forward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, call.tf32);
    A* const each = call.reduction == 2 ? static_cast<A*>(call.loss) : losses;
    for (Index first = 0; first < call.rows; first += chunk) {
      const Index count = std::min(chunk, call.rows - first);
      products.forward(backend, x + first * hidden, count, logits);
      backend.for_each(1, count, kClassParts, ClassPart<T>{logits, bias, classes, maxima, sums});
      backend.for_each(1, 1, count,
                       RowLoss<T>{logits, maxima, sums, bias, classes, first, call.targets, call.ignore_index, maximum,
                                  log_sum, each});
    }
    backend.for_each(1, 1, kParts, LossPart<A>{each, call.targets, call.ignore_index, call.rows, partial});
    backend.for_each(1, 1, 1,
                     FinishLoss<A>{partial, call.reduction == 0,
                                   call.reduction == 2 ? nullptr : static_cast<A*>(call.loss), counted});
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, call.tf32);
    products.clear_gradients(backend, dweight, bias_parts);
    for (Index first = 0; first < call.rows; first += chunk) {
      const Index count = std::min(chunk, call.rows - first);
      products.forward(backend, x + first * hidden, count, logits);
      backend.for_each(
          1, count, classes,
          LogitGradient<T>{logits, bias, classes, first, call.targets, call.ignore_index, maximum, log_sum, counted,
                           static_cast<const A*>(call.dloss), call.dloss_row, call.reduction == 0, dlogits});
      products.input_gradient(backend, dlogits, count, dx_chunk, static_cast<T*>(call.dx) + first * hidden);
      backend.for_each(1, count, hidden, CountedRows<T>{x, call.targets, call.ignore_index, first, hidden, x_chunk});
      products.add_weight_gradient(backend, dlogits, x_chunk, count, dweight);
      products.add_bias_gradient(backend, dlogits, count, bias_parts);
    }
    products.finish_gradients(backend, dweight, bias_parts, static_cast<T*>(call.dweight), static_cast<T*>(call.dbias));
  }

 private:
  const LinearCrossEntropyCall& call;
  const Index hidden, classes;
  const T *x, *bias;
  A *maximum, *log_sum, *counted;
  const LinearProducts<T> products;
  void* gemm_space;
  Index chunk;
  A *logits, *maxima, *sums, *losses, *partial, *dweight, *bias_parts, *dx_chunk;
  T *dlogits, *x_chunk;

  void lay_out(Arena& arena) {
    chunk = products.chunk_rows(call.rows, classes);
    const bool differentiates = call.dloss != nullptr;
    gemm_space = arena.take<char>(Backend::kGemmBytes);
    logits = arena.take<A>(chunk, classes);
    if (differentiates) {
      dweight = arena.take<A>(classes, hidden);
      bias_parts = arena.take<A>(kParts, classes);
      dx_chunk = arena.take<A>(chunk, hidden);
      dlogits = arena.take<T>(chunk, classes);
      x_chunk = arena.take<T>(chunk, hidden);
    } else {
      maxima = arena.take<A>(chunk, kClassParts);
      sums = arena.take<A>(chunk, kClassParts);
      losses = arena.take<A>(call.reduction == 2 ? 0 : call.rows);
      partial = arena.take<A>(2, kParts);
    }
  }
};

}  // namespace
}  // namespace fusedrnn
