// The backend of the tests: plain loops over host memory.
#pragma once
#include <algorithm>
#include <vector>

#include "cuda/engine.h"
#include "cuda/persistent/operand.h"
#include "cuda/persistent/plan.h"
#include "cuda/runtime/backend.h"

namespace fusedrnn {

// Whether loops run from the last element to the first, so that a test sees what depends on the order; and whether a
// graph is said to be captured. Set by functions of the module.
extern bool host_reversed, host_capturing;
// Bytes of a chunk of time or of logits, and of a block's own memory, where not 0: small, so that small cases have many
// chunks, and memory that is too small.
extern Index host_chunk_bytes;
// Most bytes that a block program may take, where not 0.
extern Index host_block_bytes;

namespace persistent {

// Of persistent/host.cpp; a std::runtime_error tells what the programs did wrong.
template <class T>
void run_on_host(const Plan& plan, ForwardProgramArguments<T> arguments, void* workspace);
template <class T>
void run_on_host(const Plan& plan, BackwardProgramArguments<T> arguments, void* workspace);

}  // namespace persistent

namespace {

// A block of threads that run one after the other.
class Block {
 public:
  Block(int threads, std::size_t shared_bytes) : threads_(threads), shared_(shared_bytes, '\xff') {}

  int threads() const { return threads_; }
  template <class Function>
  void each(const Function& f) const {
    for (int i = 0; i < threads_; ++i) f(host_reversed ? threads_ - 1 - i : i);
  }
  void* shared() { return shared_.data(); }

 private:
  const int threads_;
  std::vector<char> shared_;  // nan at first
};

class Backend {
 public:
  static constexpr std::size_t kGemmBytes = 0;

  static Index chunk_bytes(Index wanted) { return host_chunk_bytes > 0 ? host_chunk_bytes : wanted; }
  static Index shared_bytes() { return host_chunk_bytes > 0 ? host_chunk_bytes : kSharedBytes; }
  static std::size_t block_bytes(std::size_t wanted) {
    return host_block_bytes > 0 ? static_cast<std::size_t>(host_block_bytes) : wanted;
  }

  Backend(const Place&, void*, bool tf32) : tf32_(tf32) {}

  template <class Function>
  void for_each(Index outer, Index rows, Index columns, const Function& f) {
    const Index count = outer * rows * columns;
    for (Index i = 0; i < count; ++i) {
      const Index at = host_reversed ? count - 1 - i : i;
      f(at / columns / rows, at / columns % rows, at % columns);
    }
  }

  template <class Program>
  void for_each_block(Index blocks, int threads, std::size_t shared_bytes, const Program& program) {
    for (Index i = 0; i < blocks; ++i) {
      Block block(threads, shared_bytes);
      program(block, host_reversed ? blocks - 1 - i : i);
    }
  }

  // As cuBLAS does it, column-major, so that the exchange of the factors is tested too.
  template <class T>
  void gemm(const Gemm<T>& row_major) {
    using A = Accumulator<T>;
    const ColumnMajor g = column_major(row_major);
    std::vector<A> left(static_cast<std::size_t>(g.k * g.m)), column(static_cast<std::size_t>(g.m));
    for (Index i = 0; i < g.batch; ++i) {
      const T* const a = static_cast<const T*>(g.a) + i * g.a_batch;
      const T* const b = static_cast<const T*>(g.b) + i * g.b_batch;
      for (Index k = 0; k < g.k; ++k)
        for (Index m = 0; m < g.m; ++m)
          left[k * g.m + m] = operand<T>(g.a_transposed ? a[m * g.a_stride + k] : a[k * g.a_stride + m]);
      for (Index n = 0; n < g.n; ++n) {
        A* const c = static_cast<A*>(g.c) + i * g.c_batch + n * g.c_stride;
        std::fill(column.begin(), column.end(), A(0));
        for (Index k = 0; k < g.k; ++k) {
          const A right = operand<T>(g.b_transposed ? b[k * g.b_stride + n] : b[n * g.b_stride + k]);
          const A* const values = left.data() + k * g.m;
          for (Index m = 0; m < g.m; ++m) column[m] += values[m] * right;
        }
        for (Index m = 0; m < g.m; ++m) c[m] = g.add ? c[m] + column[m] : column[m];
      }
    }
  }

  template <class Arguments>
  void run_blocks(const persistent::Plan& plan, const Arguments& arguments, void* workspace) {
    persistent::run_on_host(plan, arguments, workspace);
  }

 private:
  bool tf32_;

  template <class T>
  Accumulator<T> operand(T value) const {
    if constexpr (sizeof(T) == 4) {
      if (tf32_) return persistent::Operand<T>::factor(value);
    }
    return widen(value);
  }
};

}  // namespace
}  // namespace fusedrnn
