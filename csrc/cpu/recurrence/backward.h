// The backward driver: backpropagation through time (Werbos 1990) for one direction of one layer, for every cell,
// element type T of the caller's arrays, and micro-kernel Tile. Steps run last to first in chunks. Within a chunk the
// recurrence leaves the gradients of all gates' arguments; then dx and the weight gradients are large products over the
// chunk, while those are warm.
#pragma once
#include <type_traits>

#include "cpu/gemm/gradients.h"
#include "cpu/recurrence/direct_gradient.h"
#include "cpu/recurrence/forward.h"
#include "cpu/recurrence/pair_panels.h"
#include "cpu/simd/norm.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Cell, class T, class Tile>
class Backward {
  using A = Accumulator<T>;
  using Left = typename Tile::Left;
  using Right = typename Tile::Right;
  using Gradients = GradientProducts<Tile>;
  using Panels = std::conditional_t<Tile::pairs, PairPanels<Left>, RowPanels>;
  using V = Vec<A>;
  static constexpr Index kRunBlocks = Tile::NR / kBlock;
  // Whether runs can read the caller's weights where they lie.
  static constexpr bool reads_weights = !Tile::pairs;
  static constexpr bool has_late = !Tile::pairs;  // attention decoders are not of 16 bits
  static constexpr CellTraits traits = Cell::traits;
  static constexpr bool has_c = traits.states == 2;
  static constexpr int slots = traits.slots;
  static constexpr int kH = 0, kC = 1;    // states
  static constexpr Index kCellWork = 64;  // a cell's equations for 16 units, in multiply-adds of 16

 public:
  Backward(const BackwardArguments<T>& arguments, Worker& worker)
      : a(arguments),
        w(worker),
        schedule(a.schedule),
        hidden(a.hidden_size),
        blocks(blocks_of(hidden)),
        own_rows(rows_of(schedule, w.row_part(), w.split.row_parts)),
        own_blocks(part_of(blocks, w.unit_part(), w.split.unit_parts)),
        clipped(as_kept(Clipped<V>(V(a.clip)), a.gates.data)),
        early(a.input_size - a.late.size),
        adding(a.accumulate),
        adding_outer(a.accumulate),
        dgates{static_cast<Left*>(a.dgates.data), a.dgates.rows, a.dgates.width},
        panels(arguments, dgates, slots * blocks, worker) {}

  void run() {
    pack();
    stage_gradient();
    if (a.replay) {
      Forward<Cell, T, Tile> forward(*a.replay, w);
      forward.pack();
      run_segments(a.replay->segment, [&](Index first, Index last, Index& chunk) {
        segment_first = first;
        segment_row = schedule.offset[first];
        return forward.replay(first, last, chunk);
      });
    } else {
      run_segments(schedule.steps, [](Index, Index, Index&) { return true; });
    }
  }

 private:
  const BackwardArguments<T>& a;
  Worker& w;
  const Schedule& schedule;
  const Index hidden, blocks;
  const Range own_rows, own_blocks;
  const Clipped<V> clipped;
  const Index early;  // columns of x
  bool adding;        // to the parameters' gradients; else the first chunk writes them
  bool adding_outer;  // to those of weights
  const Blocked<Left> dgates;
  Panels panels;
  Index chunk_row = 0, chunk_rows = 0;
  Index segment_first = 0, segment_row = 0;  // first step and packed row of what `gates` and `cells` hold

  // Segments of `steps` steps, last to first, each made ready by prepare(first, last, chunk).
  template <class Prepare>
  void run_segments(Index steps, const Prepare& prepare) {
    w.meet();
    Index chunk = 0;
    for (Index last = schedule.steps, first; last > 0; last = first) {
      first = (last - 1) / steps * steps;
      if (!prepare(first, last, chunk) || !run_segment(last, chunk)) return;
    }
    write_state_gradient();
  }

  // The segment's steps, in chunks; false if the call was interrupted.
  bool run_segment(Index last, Index& chunk) {
    for (Index first; last > segment_first; last = first) {
      first = chunk_begin(last);
      if (!w.go_on(chunk++)) return false;
      if (schedule.active[first] == 0) continue;  // an empty batch
      chunk_row = schedule.offset[first];
      chunk_rows = schedule.offset[last] - chunk_row;
      panels.begin(chunk_row, chunk_rows, first == 0);
      stage_panels(first, last);
      w.meet();
      for (Index s = last; s-- > first;) step(s);
      w.meet();
      if (measuring() && !schedule.repeats) take_norms_of_chunk();
      input_gradient();
      weight_gradients(first, last);
      if constexpr (has_late)
        if (a.late.size > 0) a.late.end_chunk(a.late.owner, chunk_of_late_input(), w);
      adding = true;
      adding_outer = adding_outer || panels.outer().first < panels.outer().last;
      w.meet();
    }
    return true;
  }

  Index chunk_begin(Index last) const {
    Index first = last - 1;
    while (first > segment_first && schedule.offset[last] - schedule.offset[first - 1] <= a.chunk_rows) --first;
    return first;
  }
  Index running(Index s) const { return larger(0, smaller(own_rows.last, schedule.active[s]) - own_rows.first); }
  int units_in(Index block) const { return static_cast<int>(smaller(kBlock, hidden - block * kBlock)); }
  A* dh_at(Index p, Index block) const { return a.dh + (p * blocks + block) * kBlock; }

  void pack() {
    if (a.dx.data || a.late.size > 0) pack_weight(a.weights.weight_ih, a.input_size, traits.input, a.packed_ih);
    for (int phase = 0; phase < traits.phases; ++phase)
      if (phase > 0 || passes_on(schedule.steps - 1))
        pack_weight(a.weights.weight_hh, hidden, traits.recurrent[phase], packed_hh(phase));
    const Range mine = part_of(blocks, w.thread, w.threads());
    for (Index j = mine.first; j < mine.last; ++j)
      for (int row = 0; row < traits.per_unit.rows; ++row)
        copy_padded(a.weights.per_unit + row * hidden + j * kBlock, units_in(j),
                    a.per_unit + (j * traits.per_unit.rows + row) * kBlock);
  }
  void pack_weight(const T* weight, Index columns, const Window& window, Right* packed) {
    const Range mine = part_of(blocks_of(columns), w.thread, w.threads());
    if constexpr (reads_weights)
      if (a.direct) return DirectWeight<T, Tile>{weight, columns, hidden, window, packed}.pack(mine);
    const Index stride = packed_inner<Right>(inner_of(window)) * kBlock;
    for (Index i = mine.first; i < mine.last; i += kRunBlocks)
      Tile::pack_backward(weight, columns, i, smaller(kRunBlocks, mine.last - i), hidden, window, packed + i * stride,
                          stride);
  }
  // Where a step's row lies in the panels.
  Index panel_row(Index s, Index p) const { return schedule.offset[s] + p - panels.first_row(); }
  // Inner dimension of a product with the gate gradients of a window.
  Index inner_of(const Window& window) const { return blocks * window.count * kBlock; }
  Right* packed_hh(int phase) const {
    Right* start = a.packed_hh;
    for (int earlier = 0; earlier < phase; ++earlier)
      start += blocks * packed_inner<Right>(inner_of(traits.recurrent[earlier])) * kBlock;
    return start;
  }

  // The final state's gradient, by position; a row that never runs hands it to its initial state.
  void stage_gradient() {
    for (Index p = own_rows.first; p < own_rows.last; ++p) {
      const bool cut = schedule.repeats && schedule.cut_at_end(p);
      for (Index j = own_blocks.first; j < own_blocks.last; ++j) {
        stage_block(a.dhn, schedule.row[p], j, cut, dh_at(p, j));
        if constexpr (has_c) stage_block(a.dcn, schedule.row[p], j, cut, a.carry.at(j, p));
        if (cut && measuring()) measure_lost_end(p, j);
      }
    }
  }
  template <class From>
  void stage_block(const StateRows<const From>& from, Index b, Index block, bool cut, A* to) {
    if (from.data && !cut)
      copy_padded(from.at(b) + block * kBlock, units_in(block), to);
    else
      clear(to, kBlock);
  }
  void write_state_gradient() {
    if (schedule.repeats && (a.dy.data || measuring())) add_repeated(0, own_rows.last);
    for (Index p = own_rows.first; p < own_rows.last; ++p)
      for (Index j = own_blocks.first; j < own_blocks.last; ++j) {
        if (a.dh0.data) copy_unpadded(dh_at(p, j), units_in(j), a.dh0.at(schedule.row[p]) + j * kBlock);
        if constexpr (has_c)
          if (a.dc0.data) copy_unpadded(a.carry.at(j, p), units_in(j), a.dc0.at(schedule.row[p]) + j * kBlock);
      }
    if (measuring() && schedule.repeats) take_all_norms();
  }

  // With a mask: to the gradient of a state of every row up to `end`, those of the outputs at the skipped steps through
  // which it lasts; the farthest first, as a call on each of those steps would.
  FUSEDRNN_NOINLINE void add_repeated(Index state, Index end) {
    for (Index p = own_rows.first; p < end; ++p)
      for (Index i = schedule.repeats_of(state, p); i-- > 0;) {
        const Index t = schedule.skipped_time(state, p, i);
        for (Index j = own_blocks.first; j < own_blocks.last; ++j) {
          add_output_gradient(t, p, j, dh_at(p, j));
          if (!measuring()) continue;
          measure(kH, t, p, j, dh_at(p, j));
          if constexpr (has_c) measure(kC, t, p, j, a.carry.at(j, p));
        }
      }
  }
  void add_output_gradient(Index t, Index p, Index block, A* to) {
    if (!a.dy.data) return;
    const T* dy = a.dy.at(t, schedule.row[p]) + block * kBlock;
    for (Index u = 0; u < units_in(block); ++u) to[u] += widen(dy[u]);
  }

  // Norms of the states' gradients: each is kept, and measured when all units are there.
  bool measuring() const { return a.norms[kH].data; }
  Index measured_row(Index t, Index p) const { return t * schedule.rows + p; }  // with a mask
  void measure(int state, Index t, Index p, Index block, const A* gradient) {
    A* to = a.measured[state].at(block, measured_row(t, p));
    for (Index u = 0; u < kBlock; ++u) to[u] = gradient[u];
  }
  FUSEDRNN_NOINLINE void take_norms_of_chunk() {
    const Range mine = part_of(chunk_rows, w.thread, w.threads());
    Cursor cursor(schedule, chunk_row + mine.first);
    for (Index r = mine.first; r < mine.last; ++r, cursor.next()) take_norms(r, cursor.time(), cursor.row());
  }
  void take_all_norms() {
    w.meet();
    for (Index p = 0; p < schedule.rows; ++p) {
      const Range mine = part_of(schedule.extent[p], w.thread, w.threads());
      for (Index t = mine.first; t < mine.last; ++t) take_norms(measured_row(t, p), t, schedule.row[p]);
    }
  }
  void take_norms(Index row, Index t, Index b) {
    for (int state = 0; state < traits.states; ++state) {
      const Blocked<A>& kept = a.measured[state];
      *a.norms[state].at(t, b) = narrow<T>(norm_of(kept.at(0, row), kept.block_stride(), hidden));
    }
  }
  // With a mask: at skipped steps before step s, or before the end, the state is the zero that a reset left. Its
  // gradient, which nothing earlier has a part in, from that of the state before the step or at the end.
  FUSEDRNN_NOINLINE void measure_lost(int state, Index s, Index p, Index block, const A* from) {
    A gradient[kBlock];
    for (Index u = 0; u < kBlock; ++u) gradient[u] = from[u];
    for (Index i = schedule.skipped_after(s, p); i > schedule.repeats_of(s, p);) {
      if (schedule.reset_before(schedule.skipped_time(s, p, i), p)) clear(gradient, kBlock);
      const Index t = schedule.skipped_time(s, p, --i);
      if (state == kH) add_output_gradient(t, p, block, gradient);
      measure(state, t, p, block, gradient);
    }
  }
  void measure_lost_end(Index p, Index block) {
    alignas(64) A gradient[kBlock];
    stage_block(a.dhn, schedule.row[p], block, false, gradient);
    measure_lost(kH, schedule.length[p], p, block, gradient);
    if constexpr (has_c) {
      stage_block(a.dcn, schedule.row[p], block, false, gradient);
      measure_lost(kC, schedule.length[p], p, block, gradient);
    }
  }

  // Copies the chunk's rows of x and of the previous h into blocks of 16 columns: the right operands of the weight
  // gradients. The previous h is needed by the cells too, and each thread fills what its own tiles read.
  void stage_panels(Index first, Index last) {
    if constexpr (Tile::pairs)
      stage_pairs();
    else
      stage_rows(first, last);
  }
  void stage_pairs() {
    Cursor cursor(schedule, chunk_row);
    panels.stage([&](Index packed_row) {
      cursor.advance_to(packed_row);
      const Index t = cursor.time(), b = cursor.row();
      return typename Panels::Rows{a.x.at(t, b), previous_row(cursor.step, cursor.position, a.h0, a.y)};
    });
  }
  void stage_rows(Index first, Index last) {
    const Range inputs =
        part_of(a.gradients.weight_ih ? blocks_of(a.input_size) : 0, w.unit_part(), w.split.unit_parts);
    for (Index s = first; s < last; ++s) {
      if (w.skip(running(s) * (blocks + blocks_of(a.input_size)))) return;
      for (Index p = own_rows.first; p < own_rows.first + running(s); ++p) {
        const Index b = schedule.row[p], t = schedule.time(s, p), r = schedule.offset[s] + p - chunk_row;
        const T* x = a.x.at(t, b);
        for (Index i = inputs.first; i < inputs.last; ++i)
          if (a.late.size > 0)
            stage_two_inputs(x, a.late.rows.at(t, b), i, a.x_panel.at(i, r));
          else
            copy_padded(x + i * kBlock, a.input_size - i * kBlock, a.x_panel.at(i, r));
        const T* h = previous_row(s, p, a.h0, a.y);
        for (Index j = own_blocks.first; j < own_blocks.last; ++j) {
          if (h)
            copy_padded(h + j * kBlock, hidden - j * kBlock, a.h_panel.at(j, r));
          else
            clear(a.h_panel.at(j, r), kBlock);
        }
      }
    }
  }
  // A block of columns of x and the late input after it.
  void stage_two_inputs(const T* x, const T* late, Index block, Right* to) {
    const Index first = block * kBlock;
    if (first >= early) return copy_padded(late + first - early, a.input_size - first, to);
    copy_padded(x + first, early - first, to);
    for (Index i = early; i < smaller(first + kBlock, a.input_size); ++i) to[i - first] = widen(late[i - early]);
  }
  // The row's h before a step, or null where it is zero.
  const T* previous_row(Index s, Index p, const StateRows<const T>& initial, const Sequence<const T>& y) const {
    const Index b = schedule.row[p];
    if (schedule.cut(s, p)) return nullptr;
    if (s == 0) return initial.data ? initial.at(b) : nullptr;
    return y.at(schedule.time(s - 1, p), b);
  }

  void step(Index s) {
    differentiate_step(s);
    if constexpr (has_late)
      if (a.late.size > 0) give_late_gradient(s, own_rows.first + running(s));
  }
  void differentiate_step(Index s) {
    const Index end = own_rows.first + running(s);
    if (schedule.repeats && (a.dy.data || measuring())) add_repeated(s + 1, end);
    if (measuring())
      differentiate_measured(s, end);
    else if (a.clip > A(0))
      differentiate_clipped(s, end);
    else
      differentiate_blocks<false>(s, end, Unclipped());
    w.meet_row();
    if constexpr (traits.phases == 2) {
      for_each_group(s, [&](Index j, Index count) {
        multiply<1>(s, end, j, count, a.doperand);
        for (Index p = own_rows.first; p < end; ++p)
          for (Index i = j; i < j + count; ++i) differentiate_operand(s, p, i);
      });
      w.meet_row();
    }
    if (!passes_on(s)) return;
    for_each_group(s, [&](Index j, Index count) {
      multiply<0>(s, end, j, count, a.dh);
      for (Index p = own_rows.first; p < end; ++p) {
        if (!schedule.cut(s, p)) continue;
        if (schedule.resets && measuring())
          for (Index i = j; i < j + count; ++i) measure_lost(kH, s, p, i, dh_at(p, i));
        clear(dh_at(p, j), count * kBlock);
      }
    });
  }

  // Whether anything reads the gradient of the h that a step began with.
  bool passes_on(Index s) const { return s > 0 || a.dh0.data; }

  // Alternating directions: what a step reads last is what the next one finds in the cache.
  template <class Work>
  void for_each_group(Index s, const Work& work) {
    const Index groups = (own_blocks.last - own_blocks.first + kRunBlocks - 1) / kRunBlocks;
    for (Index i = 0; i < groups; ++i) {
      const Index j = own_blocks.first + (s % 2 == 0 ? i : groups - 1 - i) * kRunBlocks;
      work(j, smaller(kRunBlocks, own_blocks.last - j));
    }
  }

  // Gate gradients of a phase times weight_hh: onto the direct part in dh, or from zero into doperand.
  template <int kPhase>
  void multiply(Index s, Index end, Index block, Index count, A* to) {
    if constexpr (reads_weights)
      if (a.direct) return multiply_directly<kPhase>(s, end, block, count, to);
    const Index inner = inner_of(traits.recurrent[kPhase]);
    for (Index k = 0; k < inner; k += Tile::KC) {
      const Index in_block = packed_inner<Right>(inner);
      const auto ready = Tile::make_ready(packed_hh(kPhase) + (block * in_block + k) * kBlock, in_block * kBlock,
                                          smaller(Tile::KC, inner - k), count, end - own_rows.first, ready_scratch());
      for (Index p = own_rows.first; p < end;) {
        const int rows = tile_rows<Tile>(end - p);
        if (w.skip(rows * count * smaller(Tile::KC, inner))) return;
        multiply_part<kPhase>(s, p, rows, block, count, k, ready, to);
        p += rows;
      }
    }
  }
  A* ready_scratch() const { return a.ready ? a.ready + w.thread * kReadyElements : nullptr; }

  template <int kPhase>
  void multiply_part(Index s, Index p, int rows, Index block, Index count, Index k, const typename Tile::Ready& ready,
                     A* to) {
    multiply_run(packed_hh(kPhase), traits.recurrent[kPhase], block, s, p, rows, count, k, ready, kPhase == 1 && k == 0,
                 to + (p * blocks + block) * kBlock, blocks * kBlock);
  }

  // Gate gradients of a window times `count` blocks of packed columns, over the part of the inner dimension from k on.
  void multiply_run(const Right* packed, const Window& window, Index block, Index s, Index p, int rows, Index count,
                    Index k, const typename Tile::Ready& ready, bool from_zero, A* to, Index to_row) {
    const Index inner = inner_of(window);
    const A* initial[kRunBlocks];
    A* out[kRunBlocks];
    for (Index i = 0; i < count; ++i) {
      out[i] = to + i * kBlock;
      initial[i] = from_zero ? zeros(A(0)) : out[i];
    }
    typename Tile::Product product;
    product.length = smaller(Tile::KC, inner - k);
    product.right = packed + (block * packed_inner<Right>(inner) + k) * kBlock;
    product.right_block = packed_inner<Right>(inner) * kBlock;
    Tile::use(ready, 0, 0, product);
    product.initial = initial;
    product.initial_row = from_zero ? 0 : to_row;
    product.out = out;
    product.out_row = to_row;
    const Left* left = dgates.at(window.first * blocks + k / kBlock, panel_row(s, p));
    Tile::run(rows, RunRows<Left>{left, dgates.block_stride()}, product, count);
  }

  template <int kPhase>
  FUSEDRNN_NOINLINE void multiply_directly(Index s, Index end, Index block, Index count, A* to) {
    constexpr Window window = traits.recurrent[kPhase];
    const DirectWeight<T, Tile> weight = {a.weights.weight_hh, hidden, hidden, window, packed_hh(kPhase)};
    for (Index p = own_rows.first; p < end;) {
      const int rows = tile_rows<Tile>(end - p);
      if (w.skip(rows * count * inner_of(window))) return;
      A* out = to + (p * blocks + block) * kBlock;
      for (int m = 0; kPhase == 1 && m < rows; ++m) clear(out + m * blocks * kBlock, count * kBlock);
      weight.add_product(dgates, panel_row(s, p), rows, block, count, out, blocks * kBlock);
      p += rows;
    }
  }

  // The gradient of a step's late input, in the blocks from that of its first column on.
  FUSEDRNN_NOINLINE void give_late_gradient(Index s, Index end) {
    const Index first = early / kBlock, columns = blocks_of(a.input_size) - first;
    const Range own = part_of(columns, w.unit_part(), w.split.unit_parts);
    for (Index j = own.first; j < own.last; j += kRunBlocks)
      multiply_late(s, end, first, columns, j, smaller(kRunBlocks, own.last - j));
    w.meet_row();
    LateStep<T> late = {};
    late.step = s;
    late.gradient = {a.dlate + early % kBlock, columns * kBlock};
    if (passes_on(s)) late.dh = {a.dh, blocks * kBlock};
    late.blocks = own_blocks;
    late.chunk_row = chunk_row;
    a.late.take(a.late.owner, late, w);
  }
  void multiply_late(Index s, Index end, Index first, Index columns, Index block, Index count) {
    const Index inner = inner_of(traits.input);
    for (Index k = 0; k < inner; k += Tile::KC)
      for (Index p = own_rows.first; p < end;) {
        const int rows = tile_rows<Tile>(end - p);
        if (w.skip(rows * count * smaller(Tile::KC, inner))) return;
        multiply_run(a.packed_ih, traits.input, first + block, s, p, rows, count, k, {}, k == 0,
                     a.dlate + (p * columns + block) * kBlock, columns * kBlock);
        p += rows;
      }
  }
  LateStep<T> chunk_of_late_input() const {
    LateStep<T> late = {};
    late.h_panel = a.h_panel;
    late.chunk_row = chunk_row;
    late.chunk_rows = chunk_rows;
    late.adding = adding;
    return late;
  }

  FUSEDRNN_NOINLINE void differentiate_clipped(Index s, Index end) { differentiate_blocks<false>(s, end, clipped); }
  FUSEDRNN_NOINLINE void differentiate_measured(Index s, Index end) {
    if (a.clip > A(0))
      differentiate_blocks<true>(s, end, clipped);
    else
      differentiate_blocks<true>(s, end, Unclipped());
  }
  template <bool kMeasured, class Clip>
  FUSEDRNN_INLINE void differentiate_blocks(Index s, Index end, const Clip& clip) {
    for (Index j = own_blocks.first; j < own_blocks.last && !w.skip(running(s) * kCellWork); ++j)
      for (Index p = own_rows.first; p < end; ++p) differentiate<kMeasured>(s, p, j, clip);
  }

  // The cell's backward equations for one row of one unit block.
  template <bool kMeasured, class Clip>
  void differentiate(Index s, Index p, Index block, const Clip& clip) {
    const Index b = schedule.row[p], unit = block * kBlock, packed_row = schedule.offset[s] + p;
    const bool cut = schedule.cut(s, p);
    const Gate<T>* slot = a.gates.at(block, packed_row - segment_row);
    const T* dy = a.dy.data ? a.dy.at(schedule.time(s, p), b) + unit : nullptr;
    const A* per_unit = a.per_unit + block * traits.per_unit.rows * kBlock;
    Left* dslot = dgates.at(block, panel_row(s, p));
    const Index slot_stride = blocks * dgates.block_stride();
    const auto previous_h = previous_of(s, p, block);
    A* dh = dh_at(p, block);
    const Index kept_row =
        schedule.repeats ? measured_row(schedule.time(s, p), p) : packed_row - chunk_row;  // measured
    alignas(64) A previous_dc[kBlock];
    for (Index u = 0; u < kBlock; u += V::lanes) {
      const int units = static_cast<int>(larger(0, smaller(V::lanes, hidden - unit - u)));
      V value[slots], weight[traits.per_unit.rows + 1], dvalue[slots], c(A(0));
      for (int k = 0; k < slots; ++k) value[k] = load_gate(Cell::range(k), slot + k * kBlock + u);
      for (int k = 0; k < traits.per_unit.rows; ++k) weight[k] = V::load(per_unit + k * kBlock + u);
      State<V> previous = {previous_h(u, units), V(A(0))}, grad = {V::load(dh + u), V(A(0))}, dprevious;
      if (dy) grad.h += load_partial(dy + u, units);
      if constexpr (has_c) {
        c = V::load(a.cells.at(block, packed_row - segment_row) + u);
        previous.c = previous_c(s, p, block, u, cut);
        grad.c = V::load(a.carry.at(block, p) + u);
      }
      Cell::backward(value, previous, c, grad, weight, dvalue, dprevious, clip);
      for (int k = 0; k < slots; ++k) store(rounded<T>(first_lanes(dvalue[k], units)), dslot + k * slot_stride + u);
      dprevious.h.store(dh + u);
      if constexpr (has_c) (cut ? V(A(0)) : dprevious.c).store(a.carry.at(block, p) + u);
      if constexpr (kMeasured) grad.h.store(a.measured[kH].at(block, kept_row) + u);
      if constexpr (kMeasured && has_c) {
        grad.c.store(a.measured[kC].at(block, kept_row) + u);
        dprevious.c.store(previous_dc + u);
      }
    }
    if constexpr (kMeasured && has_c)
      if (cut && schedule.resets) measure_lost(kC, s, p, block, previous_dc);
  }

  // The h before a step, as a function of the unit in the block and how many there are.
  auto previous_of(Index s, Index p, Index block) const {
    if constexpr (Tile::pairs) {
      const T* h = previous_row(s, p, a.h0, a.y);
      return [h = h ? h + block * kBlock : h](Index u, int units) { return h ? load_partial(h + u, units) : V(A(0)); };
    } else {
      return [h = a.h_panel.at(block, panel_row(s, p))](Index u, int) { return load(h + u); };
    }
  }
  V previous_c(Index s, Index p, Index block, Index u, bool cut) const {
    if (cut) return V(A(0));
    if (s > segment_first) return V::load(a.cells.at(block, schedule.offset[s - 1] + p - segment_row) + u);
    if (s > 0) return V::load(a.replay->entering.at(block, a.replay->entering_row(s, p)) + u);
    if (!a.c0.data) return V(A(0));
    const Index unit = block * kBlock + u;
    return V::load_partial(a.c0.at(schedule.row[p]) + unit,
                           static_cast<int>(larger(0, smaller(V::lanes, hidden - unit))));
  }

  void differentiate_operand(Index s, Index p, Index block) {
    if (a.clip > A(0))
      differentiate_operand(s, p, block, clipped);
    else
      differentiate_operand(s, p, block, Unclipped());
  }
  template <class Clip>
  void differentiate_operand(Index s, Index p, Index block, const Clip& clip) {
    if constexpr (traits.phases == 2) {
      const Index packed_row = schedule.offset[s] + p, r = panel_row(s, p);
      const auto previous_h = previous_of(s, p, block);
      const Gate<T>* slot = a.gates.at(block, packed_row - segment_row);
      const A* doperand = a.doperand + (p * blocks + block) * kBlock;
      Left* dslot = dgates.at(block, r);
      T* operand = (Tile::pairs ? a.operand_rows : a.operand_panel).at(block, r);
      const Index slot_stride = blocks * dgates.block_stride();
      for (Index u = 0; u < kBlock; u += V::lanes) {
        V value[slots], dvalue[slots];
        for (int k = 0; k < slots; ++k) value[k] = load_gate(Cell::range(k), slot + k * kBlock + u);
        for (int k = 0; k < slots; ++k) dvalue[k] = load(dslot + k * slot_stride + u);
        const int units = static_cast<int>(larger(0, smaller(V::lanes, hidden - block * kBlock - u)));
        const State<V> previous = {previous_h(u, units), V(A(0))};
        State<V> dprevious = {V::load(dh_at(p, block) + u), V(A(0))};
        Cell::backward_operand(value, previous, V::load(doperand + u), dvalue, dprevious, clip);
        for (int k = 0; k < slots; ++k) store(rounded<T>(first_lanes(dvalue[k], units)), dslot + k * slot_stride + u);
        dprevious.h.store(dh_at(p, block) + u);
        store(Cell::recomputed_operand(value, previous), operand + u);
      }
    }
  }

  // dx of the chunk: gate gradients times weight_ih, the chunk's rows shared among all threads of the direction.
  void input_gradient() {
    if (!a.dx.data) return;
    if constexpr (reads_weights)
      if (a.direct) return direct_input_gradient();
    const Range rows = part_of(chunk_rows, w.thread, w.threads());
    const Index before = chunk_row - panels.first_row();
    Gradients::multiply_gradient(
        w, dgates, traits.input.first * blocks, traits.input.count * blocks, a.packed_ih, early,
        {before + rows.first, before + rows.last},
        [&](Index block) {
          Cursor cursor(schedule, chunk_row + rows.first);
          return [this, block, cursor]() mutable {
            T* row = a.dx.at(cursor.time(), cursor.row()) + block * kBlock;
            cursor.next();
            return row;
          };
        },
        ready_scratch());
  }

  // Its columns are shared instead: of few rows, some threads would get none.
  FUSEDRNN_NOINLINE void direct_input_gradient() {
    alignas(64) A sums[Tile::MR * kRunBlocks * kBlock];
    const DirectWeight<T, Tile> weight = {a.weights.weight_ih, a.input_size, hidden, traits.input, a.packed_ih};
    const Range mine = part_of(blocks_of(a.input_size), w.thread, w.threads());
    for (Index j = mine.first; j < mine.last; j += kRunBlocks) {
      const Index count = smaller(kRunBlocks, mine.last - j);
      Cursor cursor(schedule, chunk_row);
      for (Index r = 0; r < chunk_rows;) {
        const int rows = tile_rows<Tile>(chunk_rows - r);
        if (w.skip(rows * count * inner_of(traits.input))) return;
        clear(sums, rows * kRunBlocks * kBlock);
        weight.add_product(dgates, r, rows, j, count, sums, kRunBlocks * kBlock);
        for (int m = 0; m < rows; ++m, cursor.next())
          copy_unpadded(sums + m * kRunBlocks * kBlock, smaller(count * kBlock, a.input_size - j * kBlock),
                        a.dx.at(cursor.time(), cursor.row()) + j * kBlock);
        r += rows;
      }
    }
  }

  // Walks packed rows in order.
  struct Cursor {
    const Schedule& schedule;
    Index step, position;
    Cursor(const Schedule& s, Index packed_row) : schedule(s) {
      Index low = 0, high = schedule.steps;
      while (high - low > 1) {
        const Index middle = (low + high) / 2;
        (schedule.offset[middle] <= packed_row ? low : high) = middle;
      }
      step = low;
      position = packed_row - schedule.offset[low];
    }
    Index time() const { return schedule.time(step, position); }
    Index row() const { return schedule.row[position]; }
    void next() {
      if (++position < schedule.active[step]) return;
      position = 0;
      ++step;
    }
    // A row that follows.
    void advance_to(Index packed_row) {
      while (schedule.offset[step] + position < packed_row) next();
    }
  };

  // Gradients of this thread's share of the weights' rows. Every sum runs over steps strictly descending, and within a
  // step over positions descending, so that it depends on no chunk, window or thread.
  void weight_gradients(Index first, Index last) {
    const Range mine = part_of(blocks * slots, w.thread, w.threads());
    if constexpr (Tile::pairs) turn_panels(mine);
    accumulate(a.x_panel, a.input_size, traits.input, mine, a.gradients.weight_ih);
    accumulate(a.h_panel, hidden, traits.recurrent[0], mine, a.gradients.weight_hh);
    if constexpr (traits.phases == 2)
      accumulate(a.operand_panel, hidden, traits.recurrent[1], mine, a.gradients.weight_hh);
    for (Index item = mine.first; item < mine.last; ++item) accumulate_bias(item);
    if constexpr (traits.per_unit.rows > 0) {
      const Range per_unit_blocks = part_of(a.gradients.per_unit ? blocks : 0, w.thread, w.threads());
      for (Index j = per_unit_blocks.first; j < per_unit_blocks.last; ++j) accumulate_per_unit(first, last, j);
    }
  }

  void turn_panels(Range items) {
    for (Index item = items.first; item < items.last; ++item)
      panels.turn_gradient(item % slots * blocks + item / slots);
    if (traits.phases == 2) panels.turn_operand();
  }
  const Blocked<Left>& left_of_outer() const {
    if constexpr (Tile::pairs)
      return panels.left();
    else
      return dgates;
  }

  // weight gradient (rows of the window's gates) += gate gradients transposed . panel
  void accumulate(const Blocked<Right>& panel, Index columns, const Window& window, Range items, A* gradient) {
    const Range rows = panels.outer();
    if (!gradient || rows.first == rows.last) return;
    if constexpr (!Tile::pairs)
      if (chunk_rows <= kFewRows) return accumulate_few_rows(panel, columns, window, items, gradient);
    const Index part = Tile::pairs ? Tile::KC : rows.last;  // pairs are made ready so many rows at a time
    for (Index last = rows.last; last > rows.first; last -= part)
      accumulate_part(panel, {larger(rows.first, last - part), last}, columns, window, items,
                      adding_outer || last < rows.last, gradient);
  }
  void accumulate_part(const Blocked<Right>& panel, Range rows, Index columns, const Window& window, Range items,
                       bool onto, A* gradient) {
    for (Index i = 0; i < blocks_of(columns); i += kRunBlocks) {
      const auto part = Gradients::outer_panel(panel, rows, i, columns, ready_scratch());
      for (Index item = items.first; item < items.last; ++item) {
        if (w.skip(kBlock * kRunBlocks * (rows.last - rows.first))) return;
        const Index block = item / slots, row = gate_row(item, window);
        if (row >= 0)
          Gradients::accumulate_outer(left_of_outer(), item % slots * blocks + block, units_in(block), part, rows,
                                      columns, onto, gradient + row * columns);
      }
    }
  }
  void accumulate_few_rows(const Blocked<Right>& panel, Index columns, const Window& window, Range items, A* gradient) {
    for (Index item = items.first; item < items.last; ++item) {
      if (w.skip(blocks_of(columns) * kBlock * chunk_rows)) return;
      const Index block = item / slots, row = gate_row(item, window);
      if (row >= 0)
        Gradients::accumulate_few(dgates, item % slots * blocks + block, units_in(block), panel, chunk_rows, columns,
                                  adding, gradient + row * columns);
    }
  }
  // First row of a weight matrix that an item, a unit block's slot, belongs to; -1 outside the window.
  Index gate_row(Index item, const Window& window) const {
    const Index slot = item % slots - window.first;
    return slot < 0 || slot >= window.count ? -1 : window.gate[slot] * hidden + item / slots * kBlock;
  }

  void accumulate_bias(Index item) {
    A* bias_ih = bias_of(item, traits.input, a.gradients.bias_ih);
    A* bias_hh = nullptr;
    for (int phase = 0; phase < traits.phases && !bias_hh; ++phase)
      bias_hh = bias_of(item, traits.recurrent[phase], a.gradients.bias_hh);
    if (!bias_ih && !bias_hh) return;
    const Index block = item / slots;
    const Index before = chunk_row - panels.first_row();
    Gradients::accumulate_rows(dgates, item % slots * blocks + block, units_in(block), {before, before + chunk_rows},
                               adding, bias_ih, bias_hh);
  }
  A* bias_of(Index item, const Window& window, A* gradient) const {
    const Index row = gate_row(item, window);
    return gradient && row >= 0 ? gradient + row : nullptr;
  }

  void accumulate_per_unit(Index first, Index last, Index block) {
    if constexpr (traits.per_unit.rows > 0) {
      for (Index u = 0; u < units_in(block); u += V::lanes) {
        const int units = static_cast<int>(smaller(V::lanes, units_in(block) - u));
        V sum[traits.per_unit.rows], dvalue[slots];
        A* gradient = a.gradients.per_unit + block * kBlock + u;
        const Index slot_stride = blocks * dgates.block_stride();
        for (int k = 0; k < traits.per_unit.rows; ++k)
          sum[k] = adding ? V::load_partial(gradient + k * hidden, units) : V(A(0));
        for (Index s = last; s-- > first;)
          for (Index p = schedule.active[s]; p-- > 0;) {
            const Index packed_row = schedule.offset[s] + p;
            const Left* dslot = dgates.at(block, panel_row(s, p)) + u;
            for (int k = 0; k < slots; ++k) dvalue[k] = load(dslot + k * slot_stride);
            V before(A(0)), after(A(0));
            if constexpr (has_c) {
              before = previous_c(s, p, block, u, schedule.cut(s, p));
              after = V::load(a.cells.at(block, packed_row - segment_row) + u);
            }
            Cell::per_unit_gradient(dvalue, before, after, sum);
          }
        for (int k = 0; k < traits.per_unit.rows; ++k) sum[k].store_partial(gradient + k * hidden, units);
      }
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
