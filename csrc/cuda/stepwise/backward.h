// The stepwise backward driver: backpropagation through time, both directions at once, and the gradients of the weights
// as products over a chunk of time.
#pragma once
#include "cuda/stepwise/net.h"

namespace fusedrnn {
namespace {

template <class T>
class StepwiseBackward : Net<T> {
  using Base = Net<T>;
  using A = Accumulator<T>;
  using Base::call, Base::config, Base::traits, Base::cell, Base::hidden, Base::directions, Base::rows, Base::kept,
      Base::columns;

 public:
  // norms: whether those of the states' gradients are wanted.
  StepwiseBackward(const NetConfig& net, const NetForward& forward, bool norms, LateInput<T>* late = nullptr)
      : Base(net, forward, late), blocks(net, forward, traits, persistent::Pass::backward), measuring(norms) {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void run(const Place& place, const NetBackward& gradient) {
    Arena arena(gradient.workspace), tape(call.kept);
    lay_out(arena);
    this->lay_out_kept(tape);
    Backend backend(place, gemm_space, config.tf32);
    SequenceOf<const T> dy = output_gradient(backend, gradient);
    const SequenceOf<const T> first_x = this->input(backend);
    this->moved(backend, Base::read_only(Base::sequence(call.y)), this->moved_y, config.width());
    if (this->late) this->late->begin(backend, kept.lengths);
    for (int layer = config.layers; layer-- > 0;) {
      SequenceOf<const T> x = layer == 0 ? first_x : Base::read_only(this->output(layer - 1));
      if (layer > 0 && this->drops()) {
        this->drop(backend, layer - 1, x.data, dropped);
        x = Base::read_only(this->sequence(dropped));
      }
      const SequenceOf<T> dx = layer == 0 ? input_gradient_of(gradient) : this->sequence(below[layer % 2]);
      run_layer(backend, layer, x, dy, dx, gradient);
      if (layer > 0 && this->drops()) this->drop(backend, layer - 1, dx.data, dx.data);
      dy = Base::read_only(dx);
    }
    if (this->late) this->late->end(backend);
    if (this->masked() && gradient.dx.data)
      backend.for_each(call.steps, rows, config.input_size,
                       SpreadGradients<T>{kept.mask, moved_dx, Base::sequence(gradient.dx), config.input_size});
  }

 private:
  // A gradient of x is rounded once: two directions of a 16-bit net are added up before.
  static constexpr bool kWide = sizeof(T) != sizeof(A);

  const BlockProgram<T> blocks;
  const bool measuring;
  void *gemm_space, *block_space;
  Packed<T> packed;
  Index chunk;                                              // steps
  T *dropped, *below[2], *gathered, *h_previous, *operand;  // below: dx of a layer that is not the first
  T* dgates;                                                // (D, chunk * B, slots, H)
  T *moved_dx, *moved_dy;                                   // with a mask, by step
  A *dx_chunk, *dx_wide, *dh, *products, *dc, *doperand;    // dx_wide: (T, B, width) where it is needed
  A *gates, *cells, *c, *replay_products;                   // recomputing: a segment
  A* dlate;                                                 // (B, columns of the late input)
  Measured<T> measured;                                     // for norms
  A *measured_products, *measured_doperands;
  A *input_gradient, *recurrent_gradient, *bias_parts, *per_unit_parts;

  void lay_out(Arena& arena) {
    const Index slots = traits.slots * hidden,
                widest = std::max(config.input_size, config.layers > 1 ? config.width() : 1);
    const bool replays = call.recompute > 0, two_states = traits.states == 2, two_phases = traits.phases == 2;
    chunk = replays ? std::clamp<Index>(call.recompute, 1, std::max<Index>(call.steps, 1))
                    : chunk_steps(call.steps, directions * rows * slots * Index(sizeof(T)), kBackwardChunkBytes);
    const Index all = this->packed_rows, part = chunk * rows;
    gemm_space = arena.take<char>(Backend::kGemmBytes);
    packed = this->lay_out_packed(arena);
    dropped = arena.take<T>(this->drops() ? all : 0, config.width());
    for (int i = 0; i < 2; ++i) below[i] = arena.take<T>(config.layers > 2 - i ? all : 0, config.width());
    gathered = arena.take<T>(part, this->gathered_width(true));
    h_previous = arena.take<T>(directions, part, hidden);
    operand = arena.take<T>(directions, two_phases ? part : 0, hidden);
    dgates = arena.take<T>(directions, part, slots);
    dx_chunk = arena.take<A>(part, widest);
    dx_wide = arena.take<A>(kWide && directions == 2 ? all : 0, widest);
    dh = arena.take<A>(directions, rows, hidden);
    block_space = arena.take<char>(blocks.workspace_bytes());
    products = arena.take<A>(directions, blocks.active() ? 0 : rows, hidden);
    dc = arena.take<A>(directions, two_states ? rows : 0, hidden);
    doperand = arena.take<A>(directions, two_phases ? rows : 0, hidden);
    gates = arena.take<A>(directions, replays ? part : 0, slots);
    cells = arena.take<A>(directions, replays && two_states ? part : 0, hidden);
    c = arena.take<A>(directions, replays && two_states ? rows : 0, hidden);
    replay_products = arena.take<A>(directions, replays ? part : 0, columns * hidden);
    input_gradient = arena.take<A>(directions, traits.input.count * hidden, widest);
    recurrent_gradient = arena.take<A>(directions, traits.gates * hidden, hidden);
    bias_parts = arena.take<A>(directions, kParts, slots);
    per_unit_parts = arena.take<A>(directions, kParts, traits.per_unit.rows * hidden);
    if (measuring) lay_out_measured(arena, part);
    dlate = arena.take<A>(this->late ? rows : 0, this->late ? this->late->size() : 0);
    if (this->late) this->late->lay_out(arena, chunk);
    this->lay_out_moved(arena);
    moved_dx = arena.take<T>(this->masked() ? all : 0, config.input_size);
    moved_dy = arena.take<T>(this->masked() ? all : 0, config.width());
  }

  void lay_out_measured(Arena& arena, Index part) {
    const bool two_states = traits.states == 2;
    measured = {};
    measured_products = arena.take<A>(directions, part, hidden);
    measured_doperands = arena.take<A>(directions, traits.phases == 2 ? part : 0, hidden);
    measured.dh = arena.take<A>(directions, rows, hidden);
    measured.dc = arena.take<A>(directions, two_states ? rows : 0, hidden);
    measured.of_h = arena.take<A>(directions, this->packed_rows, hidden);
    measured.of_c = arena.take<A>(directions, two_states ? this->packed_rows : 0, hidden);
  }

  // dy by step, and where dx by step goes.
  SequenceOf<const T> output_gradient(Backend& backend, const NetBackward& gradient) const {
    const SequenceOf<const T> dy = Base::read_only(Base::sequence(gradient.dy));
    if (!this->masked() || !dy.data) return dy;
    backend.for_each(call.steps, rows, config.width(),
                     MoveGradients<T>{kept.mask, dy, moved_dy, hidden, config.width(), config.reverse});
    return Base::read_only(this->sequence(moved_dy));
  }
  SequenceOf<T> input_gradient_of(const NetBackward& gradient) const {
    if (!this->masked() || !gradient.dx.data) return Base::sequence(gradient.dx);
    return {moved_dx, rows * config.input_size, config.input_size};
  }

  void run_layer(Backend& backend, int layer, const SequenceOf<const T>& x, const SequenceOf<const T>& dy,
                 const SequenceOf<T>& dx, const NetBackward& gradient) {
    // 1. Weights in the order of slots, the final state's gradient, and sums that begin at zero.
    const Packed<T> weights = this->pack(backend, layer, packed);
    load_gradient<T>(backend, gradient.dfinal[0], layer, dh);
    if (traits.states == 2) load_gradient<A>(backend, gradient.dfinal[1], layer, dc);
    this->clear_lost(backend, kept.mask.lost_final, dh, rows * hidden, hidden);
    this->clear_lost(backend, kept.mask.lost_final, traits.states == 2 ? dc : nullptr, rows * hidden, hidden);
    if (measuring) begin_measuring(backend, layer, dy, gradient);
    clear_sums(backend, layer);
    if (directions == 2 && dx.data) clear_input_gradient(backend, config.input_of(layer), dx);
    BackwardArrays<T> a = backward_arrays(layer, weights, dy);
    for (Index last = call.steps, first; last > 0; last = first) {
      first = call.recompute > 0 ? (last - 1) / chunk * chunk : std::max<Index>(last - chunk, 0);
      a.first = first;
      // 2. h before each step of the chunk, from the outputs; recomputing, gates and cells as well.
      backend.for_each(directions, (last - first) * rows, hidden,
                       GatherPrevious<T>{a.steps, first, hidden, a.capacity, Base::read_only(this->output(layer)),
                                         kept.layers[layer].h0, h_previous});
      if (call.recompute > 0) {
        a.gates_first = first;
        replay(backend, layer, weights, x, first, last);
      }
      if (this->late) this->late->begin_chunk(backend, first, last, h_previous);
      // 3. The steps, last to first.
      if (blocks.active())
        blocks.backward(backend, a, weights.recurrent, last, block_space);
      else
        for (Index s = last; s-- > first;) step(backend, weights, a, s);
      if (measuring) measure(backend, weights, a, last);
      if (this->late) this->late->end_chunk(backend, first, last, h_previous);
      // 4. Gradients of x and of the weights: products over the chunk.
      for (Index d = 0; d < directions; ++d) {
        add_weight_gradients(backend, layer, x, d, first, last, gradient);
        if (dx.data) differentiate_input(backend, layer, weights, dx, d, first, last);
      }
      backend.for_each(directions, kParts, traits.slots * hidden,
                       SumRows<T>{dgates, a.capacity, (last - first) * rows, traits.slots * hidden, bias_parts});
      if (traits.per_unit.rows) cell.per_unit(backend, a, directions, (last - first) * rows, per_unit_parts);
    }
    if (measuring) store_norms(backend, layer, gradient);
    // 5. The initial state's gradient, and what was added up, to the caller's arrays.
    store_state_gradients(backend, layer, a, gradient);
    if (kWide && directions == 2 && dx.data)
      backend.for_each(
          call.steps, rows, config.input_of(layer),
          CopyRows<A, T>{dx_wide, rows * config.input_of(layer), config.input_of(layer), dx.data, dx.time, dx.row});
    for (Index d = 0; d < directions; ++d) store_gradients(backend, layer, d, gradient);
  }

  template <class Item>
  void load_gradient(Backend& backend, const StateView& from, int layer, A* to) const {
    const Item* const data = static_cast<const Item*>(from.data);
    backend.for_each(directions, rows, hidden,
                     CopyRows<Item, A>{data ? data + layer * directions * from.layer : nullptr, from.layer, from.row,
                                       to, rows * hidden, hidden});
  }
  void clear_sums(Backend& backend, int layer) const {
    const auto clear = [&](A* data, Index count, Index width) {
      if (width > 0) backend.for_each(1, count, width, Fill<A>{data, width});
    };
    clear(input_gradient, directions * traits.input.count * hidden, config.input_of(layer));
    clear(recurrent_gradient, directions * traits.gates * hidden, hidden);
    clear(bias_parts, directions * kParts, traits.slots * hidden);
    clear(per_unit_parts, directions * kParts, traits.per_unit.rows * hidden);
  }

  // Both directions add to dx: a chunk of steps is another part of the time to each.
  void clear_input_gradient(Backend& backend, Index inputs, const SequenceOf<T>& dx) const {
    if (kWide)
      backend.for_each(call.steps, rows, inputs, CopyRows<A, A>{nullptr, 0, 0, dx_wide, rows * inputs, inputs});
    else
      backend.for_each(call.steps, rows, inputs, CopyRows<T, T>{nullptr, 0, 0, dx.data, dx.time, dx.row});
  }
  SequenceOf<A> wide(Index inputs) const { return {dx_wide, rows * inputs, inputs}; }

  BackwardArrays<T> backward_arrays(int layer, const Packed<T>& weights, const SequenceOf<const T>& dy) const {
    const typename Kept<T>::Layer& own = kept.layers[layer];
    const bool replays = call.recompute > 0;
    BackwardArrays<T> a = {};
    a.steps = this->steps();
    a.hidden = hidden;
    a.clip = static_cast<A>(config.clip);
    a.capacity = chunk * rows;
    a.per_unit = weights.per_unit;
    a.gates = replays ? gates : own.gates;
    a.cells = replays ? cells : own.cells;
    a.gate_rows = replays ? a.capacity : this->packed_rows;
    a.c0 = own.c0;
    a.entering = replays ? own.cells : nullptr;
    a.segment = chunk;
    a.entering_rows = this->cell_rows();
    a.h_previous = h_previous;
    a.dy = dy;
    a.dgates = dgates;
    a.dh = dh;
    a.products = products;
    a.dc = dc;
    a.doperand = doperand;
    a.operand = operand;
    return a;
  }

  // Gates and cells of a segment once more. Its h are known, so that the products of all its steps are one.
  void replay(Backend& backend, int layer, const Packed<T>& weights, const SequenceOf<const T>& x, Index first,
              Index last) const {
    const Index count = (last - first) * rows, capacity = chunk * rows;
    const typename Kept<T>::Layer& own = kept.layers[layer];
    for (Index d = 0; d < directions; ++d) {
      const T* const in_order =
          this->rows_in_order(backend, x, config.input_of(layer), d, first, last, false, gathered);
      this->project(backend, weights, layer, d, in_order, count, gates + d * capacity * traits.slots * hidden);
    }
    if (traits.states == 2) {
      const A* const from = first == 0 ? own.c0 : own.cells + (first / chunk - 1) * rows * hidden;
      const Index stride = first == 0 ? rows * hidden : this->cell_rows() * hidden;
      backend.for_each(directions, rows, hidden, CopyRows<A, A>{from, stride, hidden, c, rows * hidden, hidden});
    }
    StepArrays<T> a = {};
    a.steps = this->steps();
    a.hidden = hidden;
    a.clip = static_cast<A>(config.clip);
    a.first = first;
    a.capacity = a.product_rows = a.h_rows = a.cell_rows = capacity;
    a.bias = weights.bias;
    a.per_unit = weights.per_unit;
    a.gates = gates;
    a.products = replay_products;
    a.columns = columns;
    a.h_in = h_previous;
    a.c = c;
    a.operand = operand;
    a.cells = traits.states == 2 ? cells : nullptr;
    a.keep = true;
    for (int phase = 0; phase < traits.phases; ++phase) {
      this->multiply_recurrent(backend, weights, phase, phase == 0 ? h_previous : operand, capacity * hidden, count,
                               replay_products, capacity * columns * hidden);
      if (phase + 1 < traits.phases) cell.operand(backend, a, directions, count, first);
    }
    cell.forward(backend, a, directions, first, last);
  }

  void step(Backend& backend, const Packed<T>& weights, const BackwardArrays<T>& a, Index s) const {
    // The cell; then, phase by phase from the last, gate gradients times weight_hh.
    cell.backward(backend, a, directions, s);
    if (traits.phases == 2) {
      multiply_gradient(backend, weights, 1, a, s, doperand);
      cell.backward_operand(backend, a, directions, s);
    }
    multiply_gradient(backend, weights, 0, a, s, products);
    if (this->late) take_late(backend, weights, a, s);
  }
  // The gradient of the late columns of the input, and what it does to the h before the step.
  void take_late(Backend& backend, const Packed<T>& weights, const BackwardArrays<T>& a, Index s) const {
    Gemm<T> product = {};
    product.m = rows;
    product.n = product.c_row = this->late->size();
    product.k = traits.input.count * hidden;
    product.a = dgates + a.row(0, s, 0) * traits.slots * hidden + traits.input.first * hidden;
    product.a_row = traits.slots * hidden;
    product.b = weights.input + this->early(0);
    product.b_row = config.input_size;
    product.c = dlate;
    backend.gemm(product);
    this->late->take(backend, s, dlate, products);
  }
  void multiply_gradient(Backend& backend, const Packed<T>& weights, int phase, const BackwardArrays<T>& a, Index s,
                         A* to) const {
    multiply_gradients(backend, weights, phase, a, s, s + 1, to, rows * hidden);
  }
  // Gate gradients of the steps [begin, end) times weight_hh.
  void multiply_gradients(Backend& backend, const Packed<T>& weights, int phase, const BackwardArrays<T>& a,
                          Index begin, Index end, A* to, Index to_batch) const {
    const Index slots = traits.slots * hidden;
    Gemm<T> product = {};
    product.m = (end - begin) * rows;
    product.n = product.b_row = product.c_row = hidden;
    product.k = traits.recurrent[phase].count * hidden;
    product.a = dgates + (begin - a.first) * rows * slots + traits.recurrent[phase].first * hidden;
    product.a_row = slots;
    product.b = weights.recurrent + this->recurrent_start[phase] * hidden * hidden;
    product.c = to;
    product.batch = directions;
    product.a_batch = a.capacity * slots;
    product.b_batch = traits.gates * hidden * hidden;
    product.c_batch = to_batch;
    backend.gemm(product);
  }

  // Norms of the states' gradients; see norms.h.
  void begin_measuring(Backend& backend, int layer, const SequenceOf<const T>& dy, const NetBackward& gradient) {
    load_gradient<T>(backend, gradient.dfinal[0], layer, measured.dh);
    if (traits.states == 2) load_gradient<A>(backend, gradient.dfinal[1], layer, measured.dc);
    measured.products = measured_products;
    measured.doperands = measured_doperands;
    measured.lists = kept.mask;
    measured.resets = this->masked() ? kept.mask.resets : kept.reset;
    const bool last_layer = this->masked() && layer + 1 == config.layers;
    measured.dy_by_step = this->masked() && !last_layer;
    measured.dy = last_layer ? Base::read_only(Base::sequence(gradient.dy)) : dy;
  }
  void measure(Backend& backend, const Packed<T>& weights, const BackwardArrays<T>& a, Index last) {
    if (traits.phases == 2)
      multiply_gradients(backend, weights, 1, a, a.first, last, measured_doperands, a.capacity * hidden);
    multiply_gradients(backend, weights, 0, a, a.first, last, measured_products, a.capacity * hidden);
    measured.last = last;
    cell.measure(backend, a, measured, directions);
  }
  void store_norms(Backend& backend, int layer, const NetBackward& gradient) const {
    const A* const states[] = {measured.of_h, measured.of_c};
    for (int state = 0; state < traits.states; ++state) {
      const NormsView& to = gradient.norms[state];
      const NormOfRow<T> program = {states[state],
                                    call.steps,
                                    rows,
                                    hidden,
                                    this->masked() ? kept.mask.extents : kept.lengths,
                                    static_cast<T*>(to.data) + layer * directions * to.layer,
                                    to.layer,
                                    to.time,
                                    to.row};
      backend.for_each_block(directions * this->packed_rows, NormOfRow<T>::kThreads, NormOfRow<T>::kSharedBytes,
                             program);
    }
  }

  void add_weight_gradients(Backend& backend, int layer, const SequenceOf<const T>& x, Index d, Index first, Index last,
                            const NetBackward& gradient) const {
    const WeightGradients<void>& wanted = gradient.gradients[layer * directions + d];
    const Index inputs = config.input_of(layer), early = this->early(layer), count = (last - first) * rows;
    const T* const own = dgates + d * chunk * rows * traits.slots * hidden;
    const T* const h = h_previous + d * chunk * rows * hidden;
    if (wanted.weight_ih)
      add_weight_gradient(backend, own, traits.input, count,
                          this->rows_in_order(backend, x, early, d, first, last, true, gathered), early,
                          input_gradient + d * traits.input.count * hidden * inputs, inputs);
    if (wanted.weight_ih && this->late) {
      const T* const in_order = this->rows_in_order(backend, Base::read_only(this->late->rows()), this->late->size(), d,
                                                    first, last, true, gathered);
      add_weight_gradient(backend, own, traits.input, count, in_order, this->late->size(), input_gradient + early,
                          inputs);
    }
    for (int phase = 0; phase < traits.phases && wanted.weight_hh; ++phase)
      add_weight_gradient(
          backend, own, traits.recurrent[phase], count, phase == 0 ? h : operand + d * chunk * rows * hidden, hidden,
          recurrent_gradient + (d * traits.gates + this->recurrent_start[phase]) * hidden * hidden, hidden);
  }
  void differentiate_input(Backend& backend, int layer, const Packed<T>& weights, const SequenceOf<T>& dx, Index d,
                           Index first, Index last) const {
    const Index inputs = this->early(layer), count = (last - first) * rows, slots = traits.slots * hidden;
    Gemm<T> product = {};
    product.m = count;
    product.n = product.c_row = inputs;
    product.b_row = config.input_of(layer);
    product.k = traits.input.count * hidden;
    product.a = dgates + d * chunk * rows * slots + traits.input.first * hidden;
    product.a_row = slots;
    product.b = weights.input + d * traits.input.count * hidden * product.b_row;
    product.c = dx_chunk;
    backend.gemm(product);
    const bool add = directions == 2;
    if (kWide && add)
      backend.for_each(1, count, inputs, ScatterRows<A>{this->steps(), d, first, dx_chunk, wide(inputs), inputs, add});
    else
      backend.for_each(1, count, inputs, ScatterRows<T>{this->steps(), d, first, dx_chunk, dx, inputs, add});
  }
  // Columns of a gradient (count * H, to_row) += gate gradients of a window, transposed, times `right` (count, width).
  void add_weight_gradient(Backend& backend, const T* gradients, const Window& window, Index count, const T* right,
                           Index width, A* to, Index to_row) const {
    Gemm<T> product = {};
    product.m = window.count * hidden;
    product.n = product.b_row = width;
    product.c_row = to_row;
    product.k = count;
    product.a = gradients + window.first * hidden;
    product.a_row = traits.slots * hidden;
    product.a_transposed = true;
    product.b = right;
    product.c = to;
    product.add = true;
    backend.gemm(product);
  }

  void store_state_gradients(Backend& backend, int layer, const BackwardArrays<T>& a,
                             const NetBackward& gradient) const {
    const auto place = [&](const StateView& view, auto* data) { return data + layer * directions * view.layer; };
    const StateView &h = gradient.dinitial[0], &c = gradient.dinitial[1];
    // Step by step, what comes through weight_hh has still to be added.
    if (h.data && this->masked())
      backend.for_each(directions, rows, hidden,
                       StoreMaskedGradient<T>{kept.mask, a, blocks.active(),
                                              layer + 1 == config.layers ? Base::read_only(Base::sequence(gradient.dy))
                                                                         : SequenceOf<const T>{nullptr, 0, 0},
                                              place(h, static_cast<T*>(h.data)), h.layer, h.row});
    else if (h.data && blocks.active())
      backend.for_each(directions, rows, hidden,
                       CopyRows<A, T>{dh, rows * hidden, hidden, place(h, static_cast<T*>(h.data)), h.layer, h.row});
    else if (h.data)
      backend.for_each(directions, rows, hidden,
                       StoreInitialGradient<T>{a, place(h, static_cast<T*>(h.data)), h.layer, h.row});
    if (c.data)
      backend.for_each(directions, rows, hidden,
                       CopyRows<A, A>{dc, rows * hidden, hidden, place(c, static_cast<A*>(c.data)), c.layer, c.row});
    if (c.data) this->clear_lost(backend, kept.mask.lost_initial, place(c, static_cast<A*>(c.data)), c.layer, c.row);
  }

  void store_gradients(Backend& backend, int layer, Index d, const NetBackward& gradient) const {
    const WeightGradients<void>& to = gradient.gradients[layer * directions + d];
    const Index inputs = config.input_of(layer), slots = traits.slots;
    const bool add = gradient.accumulate;
    const auto array = [](void* data) { return static_cast<T*>(data); };
    if (to.weight_ih)
      backend.for_each(1, traits.input.count * hidden, inputs,
                       UnpackRows<T>{input_gradient + d * traits.input.count * hidden * inputs, array(to.weight_ih),
                                     this->input_map, hidden, inputs, add});
    if (to.weight_hh)
      backend.for_each(1, traits.gates * hidden, hidden,
                       UnpackRows<T>{recurrent_gradient + d * traits.gates * hidden * hidden, array(to.weight_hh),
                                     this->recurrent_map, hidden, hidden, add});
    const auto unpack = [&](const A* parts, Index count, void* array_to, const GateMap& map) {
      if (array_to)
        backend.for_each(1, count, hidden,
                         UnpackSums<T>{parts + d * kParts * count * hidden, array(array_to), map, count, hidden, add});
    };
    unpack(bias_parts, slots, to.bias_ih, this->input_slots);
    unpack(bias_parts, slots, to.bias_hh, this->recurrent_slots);
    if (traits.per_unit.rows) unpack(per_unit_parts, traits.per_unit.rows, to.per_unit, this->per_unit_map);
  }
};

}  // namespace
}  // namespace fusedrnn
