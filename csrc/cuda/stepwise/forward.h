// The stepwise forward driver: every layer over all its steps, both directions at once.
#pragma once
#include "cuda/stepwise/net.h"

namespace fusedrnn {
namespace {

template <class T>
class StepwiseForward : Net<T> {
  using Base = Net<T>;
  using A = Accumulator<T>;
  using Base::call, Base::config, Base::traits, Base::cell, Base::hidden, Base::directions, Base::rows, Base::kept,
      Base::columns, Base::h0, Base::c0;

 public:
  StepwiseForward(const NetConfig& net, const NetForward& forward, LateInput<T>* late = nullptr)
      : Base(net, forward, late), blocks(net, forward, traits, persistent::Pass::forward) {}

  std::size_t kept_bytes() {
    Arena arena(nullptr);
    this->lay_out_kept(arena);
    return arena.used();
  }
  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void run(const Place& place) {
    Arena arena(call.workspace), tape(call.kept);
    lay_out(arena);
    if (call.training) this->lay_out_kept(tape);
    Backend backend(place, gemm_space, config.tf32);
    keep_arguments(backend);
    if (this->late) this->late->begin(backend, kept.lengths);
    SequenceOf<const T> x = this->input(backend);
    for (int layer = 0; layer < config.layers; ++layer) {
      run_layer(backend, layer, x);
      if (layer + 1 == config.layers) break;
      x = Base::read_only(this->output(layer));
      if (!this->drops()) continue;
      this->drop(backend, layer, x.data, dropped);
      x = Base::read_only(this->sequence(dropped));
    }
    if (this->masked())
      backend.for_each(
          call.steps, rows, config.width(),
          SpreadOutputs<T>{kept.mask, this->moved_y, initial, Base::sequence(call.y), hidden, config.width()});
  }

 private:
  const BlockProgram<T> blocks;
  void *gemm_space, *block_space;
  Packed<T> packed;
  Index chunk;
  A *gates, *products, *c;
  T *gathered, *h, *operand, *dropped;
  T* initial;  // with a mask: (D, B, H) of the last layer, before any step

  // Workspace that the layers use one after the other.
  void lay_out(Arena& arena) {
    if (!call.training) this->lay_out_kept(arena);
    const Index slots = traits.slots * hidden;
    const bool whole = call.training && call.recompute == 0;
    chunk = whole ? std::max<Index>(call.steps, 1)
                  : chunk_steps(call.steps, directions * rows * slots * Index(sizeof(A)), kForwardChunkBytes);
    gemm_space = arena.take<char>(Backend::kGemmBytes);
    packed = this->lay_out_packed(arena);
    gates = whole ? nullptr : arena.take<A>(directions, chunk * rows, slots);
    block_space = arena.take<char>(blocks.workspace_bytes());
    products = arena.take<A>(directions, blocks.active() ? 0 : rows, columns * hidden);
    gathered = arena.take<T>(chunk * rows, this->gathered_width(false));
    h = arena.take<T>(directions, rows, hidden);
    c = arena.take<A>(directions, traits.states == 2 ? rows : 0, hidden);
    operand = arena.take<T>(directions, traits.phases == 2 ? rows : 0, hidden);
    dropped = arena.take<T>(this->drops() ? this->packed_rows : 0, config.width());
    initial = arena.take<T>(this->masked() ? directions : 0, rows, hidden);
    this->lay_out_moved(arena);
    if (this->late) this->late->lay_out(arena, chunk);
  }

  // What later steps and the backward pass need of the arguments, which the caller may then write.
  void keep_arguments(Backend& backend) {
    if (this->masked())
      backend.for_each(1, 1, rows,
                       ListSteps{kept.mask, call.mask, call.mask_time, call.mask_row, call.reset, call.reset_time,
                                 call.reset_row, call.lengths, directions, config.reverse});
    else if (call.lengths)
      backend.for_each(1, 1, rows, KeepLengths{call.lengths, kept.lengths, call.steps});
    if (call.reset && !this->masked())
      backend.for_each(1, call.steps, rows, KeepReset{call.reset, call.reset_time, call.reset_row, kept.reset, rows});
    if (this->drops()) backend.for_each(1, 1, 1, KeepCall{call.calls, kept.call});
    if (!call.training) return;
    for (int layer = 0; layer < config.layers; ++layer) {
      if (h0.data) load_initial<T>(backend, h0, layer, kept.layers[layer].h0);
      if (c0.data) load_initial<A>(backend, c0, layer, kept.layers[layer].c0);
    }
  }
  // The state that the first step sees.
  template <class Item>
  void load_initial(Backend& backend, const StateView& from, int layer, Item* to) const {
    load_state<Item>(backend, from, layer, to);
    this->clear_lost(backend, kept.mask.lost_initial, to, rows * hidden, hidden);
  }
  // A layer's part of a state array to (D, B, H), or back; a null array reads as zeros.
  template <class Item>
  void load_state(Backend& backend, const StateView& from, int layer, Item* to) const {
    const Item* const data = static_cast<const Item*>(from.data);
    backend.for_each(directions, rows, hidden,
                     CopyRows<Item, Item>{data ? data + layer * directions * from.layer : nullptr, from.layer, from.row,
                                          to, rows * hidden, hidden});
  }
  template <class Item>
  void store_state(Backend& backend, const Item* from, const StateView& to, int layer) const {
    if (!to.data) return;
    Item* const data = static_cast<Item*>(to.data) + layer * directions * to.layer;
    backend.for_each(directions, rows, hidden,
                     CopyRows<Item, Item>{from, rows * hidden, hidden, data, to.layer, to.row});
  }

  void run_layer(Backend& backend, int layer, const SequenceOf<const T>& x) {
    // 1. Weights in the order of slots, and the initial state.
    const Packed<T> weights = this->pack(backend, layer, packed);
    if (this->masked() && layer + 1 == config.layers) load_state<T>(backend, h0, layer, initial);
    load_initial<T>(backend, h0, layer, h);
    if (traits.states == 2) load_initial<A>(backend, c0, layer, c);
    StepArrays<T> a = step_arrays(layer, weights);
    for (Index first = 0; first < call.steps; first += chunk) {
      const Index last = std::min(first + chunk, call.steps);
      a.first = first;
      // 2. x . weight_ih for the chunk: one product a direction.
      for (Index d = 0; d < directions; ++d) {
        const T* const in_order = this->rows_in_order(backend, x, this->early(layer), d, first, last, false, gathered);
        this->project(backend, weights, layer, d, in_order, (last - first) * rows,
                      a.gates + d * a.capacity * traits.slots * hidden);
      }
      // 3. The steps.
      run_steps(backend, layer, weights, a, last);
    }
    // 4. The final state.
    this->clear_lost(backend, kept.mask.lost_final, h, rows * hidden, hidden);
    this->clear_lost(backend, kept.mask.lost_final, traits.states == 2 ? c : nullptr, rows * hidden, hidden);
    store_state<T>(backend, h, call.final[0], layer);
    if (traits.states == 2) store_state<A>(backend, c, call.final[1], layer);
  }

  StepArrays<T> step_arrays(int layer, const Packed<T>& weights) const {
    const typename Kept<T>::Layer& own = kept.layers[layer];
    StepArrays<T> a = {};
    a.steps = this->steps();
    a.hidden = hidden;
    a.clip = static_cast<A>(config.clip);
    a.capacity = chunk * rows;
    a.bias = weights.bias;
    a.per_unit = weights.per_unit;
    a.gates = own.gates ? own.gates : gates;
    a.products = products;
    a.product_rows = a.h_rows = rows;
    a.columns = columns;
    a.h_in = a.h_out = h;
    a.c = c;
    a.operand = operand;
    a.y = this->output(layer);
    a.cells = own.gates ? own.cells : nullptr;
    a.cell_rows = this->packed_rows;
    a.keep = own.gates != nullptr;
    return a;
  }

  // Recomputing, the tape has c before the first step of every segment but the first.
  Index segment() const { return call.recompute > 0 && traits.states == 2 ? call.recompute : call.steps; }
  void keep_entering(Backend& backend, int layer, Index s) const {
    if (s == 0 || s % segment() != 0) return;
    A* const entering = kept.layers[layer].cells + (s / segment() - 1) * rows * hidden;
    backend.for_each(directions, rows, hidden,
                     CopyRows<A, A>{c, rows * hidden, hidden, entering, this->cell_rows() * hidden, hidden});
  }

  // Steps [a.first, last): a block program runs those of a segment at once.
  void run_steps(Backend& backend, int layer, const Packed<T>& weights, const StepArrays<T>& a, Index last) const {
    for (Index s = a.first, next; s < last; s = next) {
      keep_entering(backend, layer, s);
      next = blocks.active() ? std::min((s / segment() + 1) * segment(), last) : s + 1;
      if (blocks.active())
        blocks.forward(backend, a, weights.recurrent, s, next, block_space);
      else
        step(backend, weights, a, s);
    }
  }

  // For each phase h . weight_hh of both directions, then one kernel for all gates.
  void step(Backend& backend, const Packed<T>& weights, const StepArrays<T>& a, Index s) const {
    if (this->late) add_late(backend, weights, a, s);
    for (int phase = 0; phase < traits.phases; ++phase) {
      this->multiply_recurrent(backend, weights, phase, phase == 0 ? h : operand, rows * hidden, rows, products,
                               rows * columns * hidden);
      if (phase + 1 < traits.phases) cell.operand(backend, a, directions, rows, s);
    }
    cell.forward(backend, a, directions, s, s + 1);
  }
  // The late columns of the input, and their part in the slots.
  void add_late(Backend& backend, const Packed<T>& weights, const StepArrays<T>& a, Index s) const {
    this->late->make(backend, s, h);
    Gemm<T> product = {};
    product.m = rows;
    product.n = traits.input.count * hidden;
    product.k = this->late->size();
    product.a = this->late->rows().at(s, 0);
    product.a_row = rows > 1 ? this->late->rows().row : product.k;
    product.b = weights.input + this->early(0);
    product.b_row = config.input_size;
    product.b_transposed = true;
    product.c = a.gates + a.gate_at(0, s, 0, traits.slots, 0) + traits.input.first * hidden;
    product.c_row = traits.slots * hidden;
    product.add = true;
    backend.gemm(product);
  }
};

}  // namespace
}  // namespace fusedrnn
