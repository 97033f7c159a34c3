// What the forward and backward drivers share: a net's sizes, what the tape keeps, and packed weights.
#pragma once
#include <algorithm>
#include <vector>

#include "cuda/engine.h"
#include "cuda/persistent/block_program.h"
#include "cuda/runtime/arena.h"
#include "cuda/stepwise/cell_steps.h"
#include "cuda/stepwise/elementwise.h"
#include "cuda/stepwise/late_input.h"
#include "cuda/stepwise/mask.h"

namespace fusedrnn {
namespace {

// Bytes of slots that a chunk of time may take, where they are not kept anyway. Forward, about what the second-level
// cache of a large device holds; backward, enough that the products over a chunk lose nothing by its end.
constexpr Index kForwardChunkBytes = Index(32) << 20;
constexpr Index kBackwardChunkBytes = Index(256) << 20;

inline Index chunk_steps(Index steps, Index step_bytes, Index bytes) {
  return std::clamp<Index>(Backend::chunk_bytes(bytes) / std::max<Index>(step_bytes, 1), 1, std::max<Index>(steps, 1));
}

// What is kept of a forward call: in the tape when it trains, else in the workspace.
template <class T>
struct Kept {
  struct Layer {
    Accumulator<T>* gates = nullptr;  // (D, T * B, slots, H), activated, in step order; without recompute
    Accumulator<T>* cells = nullptr;  // the same rows of c; recomputing: c on entering each segment but the first
    T* h0 = nullptr;                  // (D, B, H)
    Accumulator<T>* c0 = nullptr;     // (D, B, H)
    T* output = nullptr;              // (T, B, width), before dropout; of all layers but the last
  };
  std::int64_t* lengths = nullptr;  // (B,), clamped; with a mask the numbers of kept steps
  bool* reset = nullptr;            // (T, B); with a mask by step
  MaskLists mask;
  std::uint64_t* call = nullptr;  // the number of the call: dropout's counter
  std::vector<Layer> layers;
};

// Weights of a layer in the order of slots, of all directions one behind the other.
template <class T>
struct Packed {
  const T* input = nullptr;      // (D, input slots * H, I)
  const T* recurrent = nullptr;  // (D, gates * H, H), phase after phase
  Accumulator<T>* bias = nullptr;
  Accumulator<T>* per_unit = nullptr;
  T *input_copy = nullptr, *recurrent_copy = nullptr;  // null: the caller's own arrays will do
};

template <class T>
class Net {
 protected:
  using A = Accumulator<T>;

  // late: what makes the last columns of the input, or null.
  Net(const NetConfig& net, const NetForward& forward, LateInput<T>* late_input)
      : config(net),
        call(forward),
        late(late_input),
        cell(cell_steps<T>(net.cell)),
        traits(cell.traits),
        hidden(net.hidden_size),
        directions(net.directions),
        rows(forward.rows),
        packed_rows(forward.steps * forward.rows) {
    for (int k = 0; k < traits.input.count; ++k) {
      input_map.set(k, traits.input.gate[k]);
      input_slots.set(traits.input.first + k, traits.input.gate[k]);
    }
    for (int phase = 0, row = 0; phase < traits.phases; ++phase) {
      const Window& window = traits.recurrent[phase];
      recurrent_start[phase] = row;
      columns = std::max(columns, window.count);
      for (int k = 0; k < window.count; ++k, ++row) {
        recurrent_map.set(row, window.gate[k]);
        recurrent_slots.set(window.first + k, window.gate[k]);
      }
    }
    for (int k = 0; k < traits.per_unit.rows; ++k) per_unit_map.set(k, k);
  }

  const NetConfig& config;
  const NetForward& call;
  LateInput<T>* const late;
  const CellSteps<T> cell;
  const CellTraits& traits;
  const Index hidden, directions, rows, packed_rows;
  // The kernels are written for these two states, of which a cell may lack the second.
  const StateView &h0 = call.initial[0], &c0 = call.initial[1];
  GateMap input_map, recurrent_map;      // row of a packed matrix, in units of H -> gate
  GateMap input_slots, recurrent_slots;  // slot -> gate, where the product feeds it
  GateMap per_unit_map;
  int recurrent_start[kMaxPhases] = {};  // first row of a phase, in units of H
  int columns = 0;                       // most slots that a product with weight_hh feeds
  Kept<T> kept;
  T *moved_x = nullptr, *moved_y = nullptr;

  bool masked() const { return call.mask != nullptr; }
  // Whether rows may end before others.
  bool ragged() const { return call.lengths || masked(); }
  bool drops() const { return call.training && config.dropout > 0 && config.layers > 1; }
  Index kept_segments() const { return call.recompute > 0 ? std::max<Index>(call.steps - 1, 0) / call.recompute : 0; }
  Index cell_rows() const { return call.recompute > 0 ? kept_segments() * rows : packed_rows; }

  void lay_out_kept(Arena& arena) {
    if (ragged()) kept.lengths = arena.take<std::int64_t>(rows);
    if (call.reset) kept.reset = arena.take<bool>(packed_rows);
    if (masked()) lay_out_mask(arena);
    if (drops()) kept.call = arena.take<std::uint64_t>(1);
    kept.layers.resize(config.layers);
    for (int i = 0; i < config.layers; ++i) {
      typename Kept<T>::Layer& layer = kept.layers[i];
      if (call.training) {
        if (call.recompute == 0) layer.gates = arena.take<A>(directions, packed_rows, traits.slots, hidden);
        if (traits.states == 2) layer.cells = arena.take<A>(directions, cell_rows(), hidden);
        if (h0.data) layer.h0 = arena.take<T>(directions, rows, hidden);
        if (c0.data) layer.c0 = arena.take<A>(directions, rows, hidden);
      }
      if (i + 1 == config.layers) break;
      // In inference two outputs take turns.
      layer.output = call.training || i < 2 ? arena.take<T>(packed_rows, config.width()) : kept.layers[i - 2].output;
    }
  }

  void lay_out_mask(Arena& arena) {
    kept.mask.steps = call.steps;
    kept.mask.rows = rows;
    kept.mask.extents = arena.take<std::int64_t>(rows);
    kept.mask.counts = kept.lengths;
    kept.mask.cuts = kept.reset;
    kept.mask.resets = arena.take<bool>(call.reset ? packed_rows : 0);
    kept.mask.times = arena.take<Index>(packed_rows);
    kept.mask.states = arena.take<Index>(directions, packed_rows);
    kept.mask.lost_initial = arena.take<bool>(directions, rows);
    kept.mask.lost_final = arena.take<bool>(directions, rows);
  }
  // With a mask: copies of x and y by step.
  void lay_out_moved(Arena& arena) {
    moved_x = arena.take<T>(masked() ? packed_rows : 0, config.input_size);
    moved_y = arena.take<T>(masked() ? packed_rows : 0, config.width());
  }
  // x by step, whatever the call has.
  SequenceOf<const T> input(Backend& backend) const {
    return moved(backend, read_only(sequence(call.x)), moved_x, config.input_size);
  }
  SequenceOf<const T> moved(Backend& backend, const SequenceOf<const T>& from, T* to, Index width) const {
    if (!masked()) return from;
    backend.for_each(call.steps, rows, width, MoveTogether<T>{kept.mask, from, to, width});
    return {to, rows * width, width};
  }
  // Zeros for the rows of a layer's states (D, B, H) that a reset among skipped steps cuts off.
  template <class Item>
  void clear_lost(Backend& backend, const bool* lost, Item* states, Index outer, Index row) const {
    if (masked() && states) backend.for_each(directions, rows, hidden, ClearLost<Item>{lost, rows, states, outer, row});
  }

  Steps steps() const { return {call.steps, rows, kept.lengths, kept.reset, config.reverse}; }
  SequenceOf<T> sequence(T* data) const { return {data, rows * config.width(), config.width()}; }
  static SequenceOf<T> sequence(const SequenceView& view) { return {static_cast<T*>(view.data), view.time, view.row}; }
  static SequenceOf<const T> read_only(const SequenceOf<T>& from) { return {from.data, from.time, from.row}; }
  SequenceOf<T> output(int layer) const {
    if (layer + 1 < config.layers) return sequence(kept.layers[layer].output);
    return masked() ? sequence(moved_y) : sequence(call.y);
  }

  Packed<T> lay_out_packed(Arena& arena) const {
    Packed<T> packed;
    const Index inputs = std::max(config.input_size, config.layers > 1 ? config.width() : 1);
    if (!plain(input_map, traits.input.count))
      packed.input_copy = arena.take<T>(directions, traits.input.count * hidden, inputs);
    if (!plain(recurrent_map, traits.gates))
      packed.recurrent_copy = arena.take<T>(directions, traits.gates * hidden, hidden);
    packed.bias = arena.take<A>(directions, traits.slots, hidden);
    packed.per_unit = arena.take<A>(directions, traits.per_unit.rows, hidden);
    return packed;
  }
  // Whether a matrix of the caller's has its rows in order. Two directions are packed to lie one behind the other.
  bool plain(const GateMap& map, int count) const {
    for (int k = 0; k < count; ++k)
      if (map.gate(k) != k) return false;
    return directions == 1;
  }

  Packed<T> pack(Backend& backend, int layer, Packed<T> packed) const {
    const Index inputs = config.input_of(layer), gate_rows = traits.gates * hidden;
    for (Index d = 0; d < directions; ++d) {
      const Weights<void>& given = call.weights[layer * directions + d];
      const auto array = [](const void* data) { return static_cast<const T*>(data); };
      if (packed.input_copy)
        backend.for_each(
            1, traits.input.count * hidden, inputs,
            PackRows<T>{array(given.weight_ih), packed.input_copy + d * traits.input.count * hidden * inputs, input_map,
                        hidden, inputs});
      if (packed.recurrent_copy)
        backend.for_each(1, gate_rows, hidden,
                         PackRows<T>{array(given.weight_hh), packed.recurrent_copy + d * gate_rows * hidden,
                                     recurrent_map, hidden, hidden});
      backend.for_each(1, traits.slots, hidden,
                       PackBias<T>{array(given.bias_ih), array(given.bias_hh), packed.bias + d * traits.slots * hidden,
                                   input_slots, recurrent_slots, hidden});
      if (traits.per_unit.rows)
        backend.for_each(1, traits.per_unit.rows, hidden,
                         CopyRows<T, A>{array(given.per_unit), 0, hidden,
                                        packed.per_unit + d * traits.per_unit.rows * hidden, 0, hidden});
    }
    packed.input = packed.input_copy ? packed.input_copy : static_cast<const T*>(call.weights[layer].weight_ih);
    packed.recurrent =
        packed.recurrent_copy ? packed.recurrent_copy : static_cast<const T*>(call.weights[layer].weight_hh);
    return packed;
  }

  // Columns of a layer's input that are there before its steps.
  Index early(int layer) const { return config.input_of(layer) - (late ? late->size() : 0); }

  // Elements of a row of x in the widest layer whose rows must be gathered; 0 if there is none.
  Index gathered_width(bool summed) const {
    if (late) return std::max(early(0), late->size());
    const Index inner = config.layers > 1 ? config.width() : 0;
    if (directions == 2 || config.reverse || (summed && ragged())) return std::max(config.input_size, inner);
    return masked() || in_order(call.x.time, call.x.row, config.input_size) ? 0 : config.input_size;
  }
  bool in_order(Index time, Index row, Index width) const {
    return (row == width || rows <= 1) && (time == rows * width || call.steps <= 1);
  }

  // Rows of x in step order for a chunk: x's own where they lie so already, else gathered. Past a length the former may
  // hold anything: fit for products whose rows stand alone, not for sums over rows.
  const T* rows_in_order(Backend& backend, const SequenceOf<const T>& x, Index width, Index d, Index first, Index last,
                         bool summed, T* gathered) const {
    if (!steps().reverse(d) && in_order(x.time, x.row, width) && !(summed && ragged())) return x.at(first, 0);
    backend.for_each(1, (last - first) * rows, width, GatherRows<T>{steps(), d, first, x, gathered, width});
    return gathered;
  }

  // The part of x's early columns in the slots of a chunk, into rows `gates` of slots * H.
  void project(Backend& backend, const Packed<T>& packed, int layer, Index d, const T* x, Index count, A* gates) const {
    Gemm<T> product = {};
    product.m = count;
    product.n = traits.input.count * hidden;
    product.k = product.a_row = early(layer);
    product.b_row = config.input_of(layer);
    product.a = x;
    product.b = packed.input + d * product.n * product.b_row;
    product.b_transposed = true;
    product.c = gates + traits.input.first * hidden;
    product.c_row = traits.slots * hidden;
    backend.gemm(product);
  }

  // h's part of a phase's slots, of all directions: (D, count, columns * H).
  void multiply_recurrent(Backend& backend, const Packed<T>& packed, int phase, const T* left, Index left_batch,
                          Index count, A* products, Index products_batch) const {
    Gemm<T> product = {};
    product.m = count;
    product.n = traits.recurrent[phase].count * hidden;
    product.k = product.a_row = product.b_row = hidden;
    product.a = left;
    product.b = packed.recurrent + recurrent_start[phase] * hidden * hidden;
    product.b_transposed = true;
    product.c = products;
    product.c_row = columns * hidden;
    product.batch = directions;
    product.a_batch = left_batch;
    product.b_batch = traits.gates * hidden * hidden;
    product.c_batch = products_batch;
    backend.gemm(product);
  }

  void drop(Backend& backend, int layer, const T* from, T* to) const {
    const A scale = static_cast<A>(DropoutHash::scale(config.dropout));
    backend.for_each(call.steps, rows, config.width(),
                     ApplyDropout<T>{kept.call, config.seed, DropoutHash::threshold(config.dropout), layer, scale, from,
                                     to, rows, config.width(), kept.mask.times});
  }
};

}  // namespace
}  // namespace fusedrnn
