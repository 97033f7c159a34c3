// The linear map y = x W^T + b on a device; kernel.h beside this is the CPU's. Sums are in the accumulator's type, a
// chunk of rows at a time, and rounded once.
#pragma once
#include <algorithm>

#include "cuda/engine.h"
#include "cuda/runtime/arena.h"
#include "cuda/runtime/backend.h"
#include "cuda/stepwise/elementwise.h"
#include "ops/linear/arguments.h"

namespace fusedrnn {
namespace {

constexpr Index kChunkBytes = Index(64) << 20;  // of a chunk's products

// The products of a linear map with so many inputs and outputs; rows are contiguous.
template <class T>
struct LinearProducts {
  using A = Accumulator<T>;
  const T* weight;  // (out, in)
  Index in_features, out_features;

  Index chunk_rows(Index rows, Index width) const {
    return std::clamp<Index>(Backend::chunk_bytes(kChunkBytes) / (width * Index(sizeof(A))), 1,
                             std::max<Index>(rows, 1));
  }
  // to = x . W^T, without the bias
  void forward(Backend& backend, const T* x, Index count, A* to) const {
    Gemm<T> product = {};
    product.m = count;
    product.n = product.c_row = out_features;
    product.k = product.a_row = product.b_row = in_features;
    product.a = x;
    product.b = weight;
    product.b_transposed = true;
    product.c = to;
    backend.gemm(product);
  }
  // sums = dy . W
  void input_sums(Backend& backend, const T* dy, Index count, A* sums) const {
    Gemm<T> product = {};
    product.m = count;
    product.n = product.b_row = product.c_row = in_features;
    product.k = product.a_row = out_features;
    product.a = dy;
    product.b = weight;
    product.c = sums;
    backend.gemm(product);
  }
  // dx = dy . W, through a chunk of sums
  void input_gradient(Backend& backend, const T* dy, Index count, A* sums, T* dx) const {
    input_sums(backend, dy, count, sums);
    backend.for_each(1, count, in_features, CopyRows<A, T>{sums, 0, in_features, dx, 0, in_features});
  }
  // dweight += dy^T . x
  void add_weight_gradient(Backend& backend, const T* dy, const T* x, Index count, A* dweight) const {
    Gemm<T> product = {};
    product.m = product.a_row = out_features;
    product.n = product.b_row = product.c_row = in_features;
    product.k = count;
    product.a = dy;
    product.a_transposed = true;
    product.b = x;
    product.c = dweight;
    product.add = true;
    backend.gemm(product);
  }
  // Adds the columns' sums of dy to partial sums (kParts, out).
  void add_bias_gradient(Backend& backend, const T* dy, Index count, A* parts) const {
    backend.for_each(1, kParts, out_features, SumRows<T>{dy, count, count, out_features, parts});
  }
  void clear_gradients(Backend& backend, A* dweight, A* parts) const {
    backend.for_each(1, out_features, in_features, Fill<A>{dweight, in_features});
    backend.for_each(1, kParts, out_features, Fill<A>{parts, out_features});
  }
  void finish_gradients(Backend& backend, const A* sums, const A* parts, T* dweight, T* dbias) const {
    backend.for_each(1, out_features, in_features, CopyRows<A, T>{sums, 0, in_features, dweight, 0, in_features});
    GateMap whole;
    whole.set(0, 0);
    if (dbias) backend.for_each(1, 1, out_features, UnpackSums<T>{parts, dbias, whole, 1, out_features, false});
  }
};

template <class T>
struct AddBias {
  const Accumulator<T>* products;
  const T* bias;  // or null
  T* y;
  Index columns;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index c) const {
    y[r * columns + c] = narrow<T>(products[r * columns + c] + (bias ? widen(bias[c]) : Accumulator<T>(0)));
  }
};

template <class T>
class Linear {
  using A = Accumulator<T>;

 public:
  explicit Linear(const LinearCall& linear)
      : call(linear),
        in(linear.in_features),
        out(linear.out_features),
        x(static_cast<const T*>(linear.x)),
        products{static_cast<const T*>(linear.weight), in, out} {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void forward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, false);
    T* const y = static_cast<T*>(call.y);
    for (Index first = 0; first < call.rows; first += chunk) {
      const Index count = std::min(chunk, call.rows - first);
      products.forward(backend, x + first * in, count, sums);
      backend.for_each(1, count, out, AddBias<T>{sums, static_cast<const T*>(call.bias), y + first * out, out});
    }
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, false);
    const T* const dy = static_cast<const T*>(call.dy);
    products.clear_gradients(backend, dweight, bias_parts);
    for (Index first = 0; first < call.rows; first += chunk) {
      const Index count = std::min(chunk, call.rows - first);
      products.input_gradient(backend, dy + first * out, count, sums, static_cast<T*>(call.dx) + first * in);
      products.add_weight_gradient(backend, dy + first * out, x + first * in, count, dweight);
      products.add_bias_gradient(backend, dy + first * out, count, bias_parts);
    }
    products.finish_gradients(backend, dweight, bias_parts, static_cast<T*>(call.dweight), static_cast<T*>(call.dbias));
  }

 private:
  const LinearCall& call;
  const Index in, out;
  const T* x;
  const LinearProducts<T> products;
  void* gemm_space;
  Index chunk;
  A *sums, *dweight, *bias_parts;

  void lay_out(Arena& arena) {
    chunk = products.chunk_rows(call.rows, call.dweight ? in : out);
    gemm_space = arena.take<char>(Backend::kGemmBytes);
    sums = arena.take<A>(chunk, call.dweight ? in : out);
    dweight = arena.take<A>(call.dweight ? out : 0, in);
    bias_parts = arena.take<A>(call.dweight ? kParts : 0, out);
  }
};

}  // namespace
}  // namespace fusedrnn
