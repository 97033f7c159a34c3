// A decoder: the stepwise drivers with a late input that attention reads from a memory.
#pragma once
#include "cuda/stepwise/backward.h"
#include "cuda/stepwise/forward.h"
#include "ops/additive_attention/pass.cuh"

namespace fusedrnn {
namespace {

template <class T>
class AttentionInput final : public LateInput<T> {
  using A = Accumulator<T>;

 public:
  AttentionInput(const AdditiveAttentionCall& attention, bool backward)
      : call(attention), backward_(backward), pass(attention, backward) {}

  Index size() const override { return call.features; }
  SequenceOf<T> rows() const override { return AttentionPass<T>::template sequence<T>(call.context); }
  // Forward a step's queries are there at a time.
  void lay_out(Arena& arena, Index chunk) override { pass.lay_out(arena, backward_ ? chunk : 1); }
  void begin(Backend& backend, const std::int64_t* lengths) override {
    pass.project(backend, lengths);
    if (backward_) pass.begin_gradients(backend);
  }
  void make(Backend& backend, Index step, const T* h) override {
    pass.project_queries(backend, h, call.rows);
    pass.attend(backend, step, step + 1);
  }
  void begin_chunk(Backend& backend, Index first, Index last, const T* h) override {
    chunk_first = first;
    pass.project_queries(backend, h, (last - first) * call.rows);
  }
  void take(Backend& backend, Index step, const A* gradient, A* dh) override {
    pass.differentiate(backend, chunk_first, step, step + 1, gradient);
    pass.add_query_gradient(backend, (step - chunk_first) * call.rows, dh);
  }
  void end_chunk(Backend& backend, Index first, Index last, const T* h) override {
    pass.end_chunk(backend, h, first, last);
  }
  void end(Backend& backend) override { pass.finish(backend); }

 private:
  const AdditiveAttentionCall& call;
  const bool backward_;
  AttentionPass<T> pass;
  Index chunk_first = 0;
};

}  // namespace
}  // namespace fusedrnn
