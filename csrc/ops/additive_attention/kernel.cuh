// Additive attention on a device, of queries that are all known; kernel.h beside this is the CPU's and says what is
// computed. A decoder's, in the loop of a cell, is csrc/cuda/stepwise/decoder.h.
#pragma once
#include "ops/additive_attention/pass.cuh"

namespace fusedrnn {
namespace {

template <class T>
class AdditiveAttention {
  using A = Accumulator<T>;

 public:
  explicit AdditiveAttention(const AdditiveAttentionCall& attention)
      : call(attention), backwards(attention.dweight_query != nullptr), pass(attention, backwards) {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  // Without steps it makes values and keys, for a stepper.
  void forward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, false);
    pass.project(backend, nullptr);
    for (Index first = 0; first < call.steps; first += chunk) {
      const Index last = std::min(first + chunk, call.steps);
      pass.project_queries(backend, query(first), (last - first) * call.rows);
      pass.attend(backend, first, last);
    }
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, gemm_space, false);
    pass.project(backend, nullptr);
    pass.begin_gradients(backend);
    for (Index first = 0; first < call.steps; first += chunk) {
      const Index last = std::min(first + chunk, call.steps), count = (last - first) * call.rows;
      pass.project_queries(backend, query(first), count);
      pass.differentiate(backend, first, first, last, nullptr);
      pass.query_gradients(backend, count, sums, static_cast<T*>(call.dquery) + first * call.rows * call.query_size);
      pass.end_chunk(backend, query(first), first, last);
    }
    pass.finish(backend);
  }

 private:
  const AdditiveAttentionCall& call;
  const bool backwards;
  AttentionPass<T> pass;
  void* gemm_space;
  Index chunk;
  A* sums;

  void lay_out(Arena& arena) {
    chunk = pass.chunk_steps(kChunkBytes);
    gemm_space = arena.take<char>(Backend::kGemmBytes);
    sums = arena.take<A>(backwards ? chunk * call.rows : 0, call.query_size);
    pass.lay_out(arena, chunk);
  }
  const T* query(Index step) const { return static_cast<const T*>(call.query) + step * call.rows * call.query_size; }
};

}  // namespace
}  // namespace fusedrnn
