// What a call of attention does on a device around its queries, be they all known or a decoder's states.
#pragma once
#include <algorithm>

#include "cuda/engine.h"
#include "cuda/runtime/arena.h"
#include "ops/additive_attention/attend.cuh"
#include "ops/linear/kernel.cuh"

namespace fusedrnn {
namespace {

template <class T>
class AttentionPass {
  using A = Accumulator<T>;

 public:
  AttentionPass(const AdditiveAttentionCall& attention, bool backward) : call(attention), backward_(backward) {
    memory = {call.locations,
              call.features,
              call.size,
              call.memory_lengths,
              call.memory_row,
              static_cast<const T*>(call.values),
              static_cast<const A*>(call.keys),
              static_cast<const T*>(call.weight_score)};
    to_keys = {static_cast<const T*>(call.weight_memory), call.features, call.size};
    to_query = {static_cast<const T*>(call.weight_query), call.query_size, call.size};
  }

  // Steps of so many bytes' worth of queries.
  Index chunk_steps(Index bytes) const {
    const Index step = call.rows * (call.size + call.locations) * Index(sizeof(A));
    return std::clamp<Index>(Backend::chunk_bytes(bytes) / std::max<Index>(step, 1), 1, std::max<Index>(call.steps, 1));
  }

  // For the queries of `chunk` steps at a time.
  void lay_out(Arena& arena, Index chunk) {
    const Index places = call.memory_rows * call.locations, queries_count = chunk * call.rows;
    T* const own_values = arena.take<T>(call.values ? 0 : places, call.features);
    A* const own_keys = arena.take<A>(call.keys ? 0 : places, call.size);
    values = call.values ? static_cast<T*>(call.values) : own_values;
    keys = call.keys ? static_cast<A*>(call.keys) : own_keys;
    memory.values = values;
    memory.keys = keys;
    queries = arena.take<A>(queries_count, call.size);
    own_attention = arena.take<A>(call.attention.data || backward_ ? 0 : call.rows, call.locations);
    own_location = arena.take<std::int64_t>(call.location.data || backward_ ? 0 : call.rows);
    if (!backward_) return;
    total = arena.take<A>(call.steps * call.rows, call.features);
    scores = arena.take<A>(queries_count, call.locations);
    dqueries = arena.take<T>(queries_count, call.size);
    dscore = arena.take<A>(queries_count, call.size);
    dkeys = arena.take<A>(places, call.size);
    rounded_dkeys = arena.take<T>(places, call.size);
    dvalues = arena.take<A>(places, call.features);
    dweight_query = arena.take<A>(call.size, call.query_size);
    dweight_memory = arena.take<A>(call.size, call.features);
    score_parts = arena.take<A>(kParts, call.size);
    bias_parts = arena.take<A>(kParts, call.size);
  }

  // Values, and keys unless the tape has them.
  void project(Backend& backend, const std::int64_t* step_lengths) {
    lengths = step_lengths;
    if (call.ready && !backward_) return;
    const Index places = call.memory_rows * call.locations;
    AttentionRows<T> all = memory;
    all.row_of = nullptr;
    backend.for_each(call.memory_rows, call.locations, call.features,
                     GatherMemory<T>{all, sequence<const T>(call.memory), values});
    if (call.ready) return;
    to_keys.forward(backend, values, places, keys);
    backend.for_each(1, places, call.size, AddKeyBias<T>{static_cast<const T*>(call.bias), keys, call.size});
  }

  // What the queries h (count, H) are to the keys.
  void project_queries(Backend& backend, const T* h, Index count) { to_query.forward(backend, h, count, queries); }
  // The steps [first, last) of projected queries.
  void attend(Backend& backend, Index first, Index last) const {
    const SequenceOf<A> attention =
        call.attention.data ? sequence<A>(call.attention) : SequenceOf<A>{own_attention, 0, call.locations};
    const SequenceOf<std::int64_t> location =
        call.location.data ? sequence<std::int64_t>(call.location) : SequenceOf<std::int64_t>{own_location, 0, 1};
    const LocationOf<A> chosen = {call.kind, DropoutHash::stream(call.seed, call.number, 0), location,
                                  sequence<A>(call.log_prob), sequence<A>(call.entropy)};
    backend.for_each_block(
        (last - first) * call.rows, kAttendThreads, Attend<T>::kSharedBytes,
        Attend<T>{memory, {first, call.rows, lengths}, queries, attention, sequence<T>(call.context), chosen});
  }

  void begin_gradients(Backend& backend) const {
    const Index places = call.memory_rows * call.locations;
    backend.for_each(1, places, call.size, Fill<A>{dkeys, call.size});
    to_query.clear_gradients(backend, dweight_query, score_parts);
    to_keys.clear_gradients(backend, dweight_memory, bias_parts);
  }
  // The steps [first, last) of a chunk that begins at `chunk_first`; late: (their queries, M) or null.
  void differentiate(Backend& backend, Index chunk_first, Index first, Index last, const A* late) const {
    const Index skipped = (first - chunk_first) * call.rows;
    backend.for_each_block((last - first) * call.rows, kAttendThreads, DifferentiateAttention<T>::kSharedBytes,
                           DifferentiateAttention<T>{memory,
                                                     {first, call.rows, lengths},
                                                     queries + skipped * call.size,
                                                     sequence<const A>(call.attention),
                                                     late,
                                                     sequence<const T>(call.dcontext),
                                                     sequence<const A>(call.dattention),
                                                     call.kind > 0,
                                                     sequence<const std::int64_t>(call.location),
                                                     sequence<const A>(call.entropy),
                                                     sequence<const A>(call.dlog_prob),
                                                     sequence<const A>(call.dentropy),
                                                     total,
                                                     scores + skipped * call.locations,
                                                     dqueries + skipped * call.size,
                                                     dscore + skipped * call.size});
  }
  // to (rows, H) += gradients of a step's projected queries times weight_query.
  void add_query_gradient(Backend& backend, Index query, A* to) const {
    Gemm<T> product = {};
    product.m = call.rows;
    product.n = product.b_row = product.c_row = call.query_size;
    product.k = product.a_row = call.size;
    product.a = dqueries + query * call.size;
    product.b = static_cast<const T*>(call.weight_query);
    product.c = to;
    product.add = true;
    backend.gemm(product);
  }
  // What a chunk's steps, of the queries h, do to the gradients of the keys and the weights.
  void end_chunk(Backend& backend, const T* h, Index first, Index last) const {
    const Index count = (last - first) * call.rows;
    backend.for_each(call.memory_rows, call.locations, call.size,
                     AddKeyGradients<T>{memory, {first, call.rows, lengths}, last, queries, scores, dkeys});
    to_query.add_weight_gradient(backend, dqueries, h, count, dweight_query);
    backend.for_each(1, kParts, call.size, SumRows<A>{dscore, count, count, call.size, score_parts});
  }
  // dquery (count, H), through a chunk of sums.
  void query_gradients(Backend& backend, Index count, A* sums, T* to) const {
    to_query.input_gradient(backend, dqueries, count, sums, to);
  }
  // The gradients of the memory, and those of the weights to the caller's arrays.
  void finish(Backend& backend) const {
    const Index places = call.memory_rows * call.locations;
    backend.for_each(1, places, call.size, FinishKeyGradients<T>{dkeys, memory.weight_score, rounded_dkeys, call.size});
    to_keys.add_weight_gradient(backend, rounded_dkeys, values, places, dweight_memory);
    to_keys.add_bias_gradient(backend, rounded_dkeys, places, bias_parts);
    multiply_keys(backend, places);
    if (call.kind > 0)
      backend.for_each(call.rows, call.locations, call.features,
                       AddLocationGradients<T>{memory,
                                               {0, call.rows, lengths},
                                               call.steps,
                                               sequence<const std::int64_t>(call.location),
                                               total,
                                               dvalues});
    else
      add_shares(backend);
    backend.for_each(call.rows, call.locations, call.features,
                     StoreMemoryGradient<T>{memory, dvalues, sequence<T>(call.dmemory)});
    store(backend, dweight_query, call.query_size, call.dweight_query);
    store(backend, dweight_memory, call.features, call.dweight_memory);
    store_parts(backend, bias_parts, call.dbias);
    store_parts(backend, score_parts, call.dweight_score);
  }

  const AdditiveAttentionCall& call;

  template <class Item>
  static SequenceOf<Item> sequence(const SequenceView& view) {
    return {static_cast<Item*>(view.data), view.time, view.row};
  }

 private:
  const bool backward_;
  AttentionRows<T> memory;
  LinearProducts<T> to_keys, to_query;
  const std::int64_t* lengths = nullptr;
  T* values;
  A *keys, *queries, *own_attention;
  std::int64_t* own_location;
  A *total, *scores, *dscore, *dkeys, *dvalues, *dweight_query, *dweight_memory, *score_parts, *bias_parts;
  T *dqueries, *rounded_dkeys;

  // dvalues = dkeys . weight_memory
  void multiply_keys(Backend& backend, Index places) const {
    Gemm<T> product = {};
    product.m = places;
    product.n = product.b_row = product.c_row = call.features;
    product.k = product.a_row = call.size;
    product.a = rounded_dkeys;
    product.b = static_cast<const T*>(call.weight_memory);
    product.c = dvalues;
    backend.gemm(product);
  }
  // dvalues += each row's probabilities, transposed, times the gradients of its contexts
  void add_shares(Backend& backend) const {
    Gemm<A> product = {};
    product.m = call.locations;
    product.n = product.c_row = call.features;
    product.k = call.steps;
    product.a = static_cast<const A*>(call.attention.data);
    product.a_row = call.steps > 1 ? call.attention.time : call.locations;
    product.a_transposed = true;
    product.b = total;
    product.b_row = call.rows * call.features;
    product.c = dvalues;
    product.add = true;
    product.batch = call.rows;
    product.a_batch = call.attention.row;
    product.b_batch = call.features;
    product.c_batch = call.locations * call.features;
    backend.gemm(product);
  }
  void store(Backend& backend, const A* sum, Index columns, void* to) const {
    GateMap whole;
    whole.set(0, 0);
    backend.for_each(1, call.size, columns,
                     UnpackRows<T>{sum, static_cast<T*>(to), whole, call.size, columns, call.accumulate});
  }
  void store_parts(Backend& backend, const A* parts, void* to) const {
    GateMap whole;
    whole.set(0, 0);
    backend.for_each(1, 1, call.size, UnpackSums<T>{parts, static_cast<T*>(to), whole, 1, call.size, call.accumulate});
  }
};

}  // namespace
}  // namespace fusedrnn
