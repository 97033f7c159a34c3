// The forward driver: one direction of one layer over all its steps, for every cell, element type T of the caller's
// arrays, and micro-kernel Tile.
#pragma once
#include "cpu/gemm/pack.h"
#include "cpu/gemm/product.h"
#include "cpu/runtime/worker.h"
#include "cpu/simd/gates.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Cell, class T, class Tile>
class Forward {
  using A = Accumulator<T>;
  using Left = typename Tile::Left;
  using Right = typename Tile::Right;
  using V = Vec<A>;
  static constexpr Index kRunBlocks = Tile::NR / kBlock;
  static constexpr CellTraits traits = Cell::traits;
  static constexpr bool has_c = traits.states == 2;
  static constexpr int slots = traits.slots;
  static constexpr bool has_late = !Tile::pairs;                  // attention decoders are not of 16 bits
  static constexpr bool keeps = std::is_same_v<Gate<T>, Gate16>;  // gates leave their sums' place for the tape

 public:
  Forward(const ForwardArguments<T>& arguments, Worker& worker)
      : a(arguments),
        w(worker),
        schedule(a.schedule),
        hidden(a.hidden_size),
        blocks(blocks_of(hidden)),
        own_rows(rows_of(schedule, w.row_part(), w.split.row_parts)),
        own_blocks(part_of(blocks, w.unit_part(), w.split.unit_parts)),
        early(a.input_size - a.late.size),
        pointers(reinterpret_cast<const Left**>(a.pointers) + w.thread * a.chunk_rows) {}

  void run() {
    if (a.fresh.weight_ih) pack();
    stage_state();
    w.meet();
    for (Index first = 0, last, chunk = 0; first < schedule.steps; first = last, ++chunk) {
      last = chunk_end(first);
      if (!w.go_on(chunk)) return;
      chunk_row = a.training && !keeps ? 0 : schedule.offset[first];
      project(first, last);
      for (Index s = first; s < last; ++s) {
        if (a.segment > 0 && s > 0 && s % a.segment == 0) keep_entering(s);
        step(s);
      }
    }
  }

  // Recomputing: pack() once, then the gates and cells of the steps [first, last), a segment, as run() made them.
  // Counts on in `chunk`; false if the call was interrupted.
  bool replay(Index first, Index last, Index& chunk) {
    chunk_row = cells_row = schedule.offset[first];
    stage_segment(first);
    for (Index from = first, end; from < last; from = end) {
      end = smaller(chunk_end(from), last);
      if (!w.go_on(chunk++)) return false;
      if (keeps) chunk_row = schedule.offset[from];
      project(from, end);
      for (Index s = from; s < end; ++s) step(s);
    }
    return true;
  }

  // Writes a.fresh.
  void pack() {
    const Range mine = part_of(blocks, w.thread, w.threads());
    for (Index block = mine.first; block < mine.last; ++block) {
      pack_weight(a.weights.weight_ih, a.input_size, traits.input, block, a.fresh.weight_ih);
      for (int phase = 0; phase < traits.phases; ++phase)
        pack_weight(a.weights.weight_hh, hidden, traits.recurrent[phase], block,
                    a.fresh.weight_hh + phase_start(traits, phase, blocks, packed_inner<Right>(hidden)));
      for (int slot = 0; slot < slots; ++slot) pack_bias(block, slot);
      for (int row = 0; row < traits.per_unit.rows; ++row)
        copy_padded(a.weights.per_unit + row * hidden + block * kBlock, units_in(block),
                    a.fresh.per_unit + (block * traits.per_unit.rows + row) * kBlock);
    }
  }

 private:
  const ForwardArguments<T>& a;
  Worker& w;
  const Schedule& schedule;
  const Index hidden, blocks;
  const Range own_rows, own_blocks;
  const Index early;  // columns of x
  const Left** const pointers;
  Index chunk_row = 0;  // packed row at which the gates buffer begins
  Index cells_row = 0;  // and the one of the cells

  Index chunk_end(Index first) const {
    Index last = first + 1;
    while (last < schedule.steps && schedule.offset[last + 1] - schedule.offset[first] <= a.chunk_rows) ++last;
    return last;
  }
  // Unit blocks whose slots of a window one run covers: as many as fill its columns.
  static constexpr Index unit_blocks_of(const Window& window) { return larger(1, kRunBlocks / window.count); }
  // Rows of this thread that run at a step.
  Index running(Index s) const { return larger(0, smaller(own_rows.last, schedule.active[s]) - own_rows.first); }
  int units_in(Index block) const { return static_cast<int>(smaller(kBlock, hidden - block * kBlock)); }
  // Those of one vector from a unit of the block on.
  int units_from(Index block, Index u) const {
    return static_cast<int>(larger(0, smaller(V::lanes, hidden - block * kBlock - u)));
  }

  void pack_weight(const T* weight, Index inner, const Window& window, Index block, Right* packed) {
    for (int slot = 0; slot < window.count; ++slot)
      Tile::pack_forward(weight + (window.gate[slot] * hidden + block * kBlock) * inner, inner, units_in(block),
                         packed + (block * window.count + slot) * packed_inner<Right>(inner) * kBlock);
  }

  // A slot's bias is the sum of the biases of the products that feed it.
  void pack_bias(Index block, int slot) {
    A* bias = a.fresh.bias + (block * slots + slot) * kBlock;
    clear(bias, kBlock);
    add_bias(a.weights.bias_ih, traits.input, block, slot, bias);
    for (int phase = 0; phase < traits.phases; ++phase)
      add_bias(a.weights.bias_hh, traits.recurrent[phase], block, slot, bias);
  }
  void add_bias(const T* from, const Window& window, Index block, int slot, A* bias) {
    if (!from || slot < window.first || slot >= window.first + window.count) return;
    from += window.gate[slot - window.first] * hidden + block * kBlock;
    for (int u = 0; u < units_in(block); ++u) bias[u] += widen(from[u]);
  }

  void stage_state() {
    for (Index p = own_rows.first; p < own_rows.last; ++p) {
      const Index b = schedule.row[p];
      const bool empty = schedule.length[p] == 0;
      for (Index j = own_blocks.first; j < own_blocks.last; ++j) {
        stage_block(a.h0, b, j, !empty && schedule.cut(0, p), h_at(0) + p * blocks * kBlock + j * kBlock);
        if (empty) copy_unpadded(h_at(0) + p * blocks * kBlock + j * kBlock, units_in(j), a.hn.at(b) + j * kBlock);
        if constexpr (has_c) {
          stage_block(a.c0, b, j, !empty && schedule.cut(0, p), a.carry.at(j, p));
          if (empty) copy_unpadded(a.carry.at(j, p), units_in(j), a.cn.at(b) + j * kBlock);
        }
      }
    }
  }
  template <class From, class To>
  void stage_block(const StateRows<const From>& from, Index b, Index block, bool cut, To* to) {
    if (from.data && !cut)
      copy_padded(from.at(b) + block * kBlock, units_in(block), to);
    else
      clear(to, kBlock);
  }

  // The state on entering a segment: from y, and the c that was kept.
  void stage_segment(Index first) {
    for (Index p = own_rows.first; p < own_rows.first + running(first); ++p) {
      const Index b = schedule.row[p];
      const bool cut = schedule.cut(first, p);
      const T* y = first > 0 ? a.known_y.at(schedule.time(first - 1, p), b) : nullptr;
      for (Index j = own_blocks.first; j < own_blocks.last; ++j) {
        stage_block(first > 0 ? StateRows<const T>{y, 0} : a.h0, b, j, cut, h_at(first) + (p * blocks + j) * kBlock);
        if constexpr (has_c) {
          if (first > 0)
            copy_padded(a.entering.at(j, a.entering_row(first, p)), kBlock, a.carry.at(j, p));
          else
            stage_block(a.c0, b, j, cut, a.carry.at(j, p));
        }
      }
    }
  }
  void keep_entering(Index s) {
    if constexpr (has_c)
      for (Index p = own_rows.first; p < own_rows.first + running(s); ++p)
        for (Index j = own_blocks.first; j < own_blocks.last; ++j)
          copy_padded(a.carry.at(j, p), kBlock, a.entering.at(j, a.entering_row(s, p)));
  }

  // Bias and x . weight_ih for this thread's rows and unit blocks of the steps [first, last).
  FUSEDRNN_NOINLINE void project(Index first, Index last) {
    Index count = 0;
    for (Index s = first; s < last; ++s)
      for (Index p = own_rows.first; p < own_rows.first + running(s); ++p, ++count)
        pointers[count] =
            left_row(a.x.at(schedule.time(s, p), schedule.row[p]), schedule.offset[s] + p - schedule.offset[first],
                     count % w.split.unit_parts == w.unit_part());
    if constexpr (!std::is_same_v<Left, T>) w.meet_row();
    const bool whole = w.split.row_parts == 1;  // then the rows of all steps lie side by side
    constexpr int columns = traits.input.count;
    for (Index c = own_blocks.first * columns; c < own_blocks.last * columns; c += kRunBlocks) {
      const Index width = smaller(kRunBlocks, own_blocks.last * columns - c);
      if (whole) {
        project_rows(c, width, schedule.offset[first] - chunk_row, count, pointers, {0, early});
        continue;
      }
      const Left** row = pointers;
      for (Index s = first; s < last; row += running(s++))
        project_rows(c, width, schedule.offset[s] + own_rows.first - chunk_row, running(s), row, {0, early});
    }
    bias_other_slots(first, last);
  }

  // A row of x as the micro-kernel reads it, the i-th of a chunk; where that is wider than x, one of the threads of the
  // same rows makes it.
  const Left* left_row(const T* x, Index i, bool mine) const {
    if constexpr (std::is_same_v<Left, T>) {
      return x;
    } else {
      const Index stride = a.input_size + a.input_size % 2;  // whole pairs
      Left* row = static_cast<Left*>(a.x_rows) + i * stride;
      if (!mine) return row;
      row[stride - 1] = Left(0);
      for (Index k = 0; k < a.input_size; k += V::lanes) {
        const int count = static_cast<int>(smaller(V::lanes, a.input_size - k));
        store_partial(load_partial(x + k, count), row + k, count);
      }
      return row;
    }
  }
  typename Tile::Ready make_ready(const Right* right, Index inner, Index k, Index columns, Index rows) const {
    return Tile::make_ready(right, packed_inner<Right>(inner) * kBlock, smaller(Tile::KC, inner - k), columns, rows,
                            a.ready ? a.ready + w.thread * kReadyElements : nullptr);
  }

  // `inner`: columns of weight_ih that `left` is multiplied with.
  void project_rows(Index column, Index width, Index row, Index count, const Left** left, Range inner) {
    constexpr int columns = traits.input.count;
    const A* bias[kRunBlocks];
    A* out[kRunBlocks];
    for (Index i = 0; i < width; ++i) {
      const Index block = (column + i) / columns, slot = traits.input.first + (column + i) % columns;
      bias[i] = a.packed.bias + (block * slots + slot) * kBlock;
      out[i] = a.gates.at(block, row) + slot * kBlock;
    }
    for (Index k = inner.first; k < inner.last; k += Tile::KC)
      project_part(column, width, inner, k, count, left, bias, out);
  }

  // Adds the part from k on of the inner dimension; the first one starts from the bias.
  void project_part(Index column, Index width, Range inner, Index k, Index count, const Left** left,
                    const A* const* bias, A* const* first_out) {
    A* out[kRunBlocks];
    for (Index i = 0; i < width; ++i) out[i] = first_out[i];
    typename Tile::Product product;
    product.length = smaller(Tile::KC, inner.last - k);
    const Index in_block = packed_inner<Right>(a.input_size);
    product.right = a.packed.weight_ih + (column * in_block + k) * kBlock;
    product.right_block = in_block * kBlock;
    product.initial = k > 0 ? out : bias;
    product.initial_row = k > 0 ? a.gates.width : 0;
    product.out = out;
    product.out_row = a.gates.width;
    Tile::use(make_ready(product.right, a.input_size, k, width, count), 0, 0, product);
    for (Index done = 0; done < count;) {
      const int rows = tile_rows<Tile>(count - done);
      if (w.skip(rows * width * product.length)) return;
      Tile::run(rows, RowPointers<Left>{left + done, k - inner.first}, product, width);
      done += rows;
      for (Index i = 0; i < width; ++i) out[i] += rows * a.gates.width;
    }
  }

  // Slots that x does not feed start from their bias alone.
  void bias_other_slots(Index first, Index last) {
    for (int slot = 0; slot < slots; ++slot) {
      if (slot >= traits.input.first && slot < traits.input.first + traits.input.count) continue;
      for (Index j = own_blocks.first; j < own_blocks.last; ++j)
        for (Index s = first; s < last; ++s)
          for (Index p = own_rows.first; p < own_rows.first + running(s); ++p)
            copy_padded(a.packed.bias + (j * slots + slot) * kBlock, kBlock,
                        a.gates.at(j, schedule.offset[s] + p - chunk_row) + slot * kBlock);
    }
  }

  void step(Index s) {
    if constexpr (has_late)
      if (a.late.size > 0) add_late_input(s);
    phase<0>(s);
    if constexpr (traits.phases == 2) phase<1>(s);
  }

  // What of the input is known only now, in the slots that x feeds.
  FUSEDRNN_NOINLINE void add_late_input(Index s) {
    const Index count = running(s);
    LateStep<T> late = {};
    late.step = s;
    late.h = {h_at(s), blocks * kBlock};
    a.late.make(a.late.owner, late, w);
    for (Index i = 0; i < count; ++i) {
      const Index p = own_rows.first + i;
      pointers[i] = a.late.rows.at(schedule.time(s, p), schedule.row[p]);
    }
    constexpr int columns = traits.input.count;
    for (Index c = own_blocks.first * columns; c < own_blocks.last * columns; c += kRunBlocks)
      project_rows(c, smaller(kRunBlocks, own_blocks.last * columns - c),
                   schedule.offset[s] + own_rows.first - chunk_row, count, pointers, {early, a.input_size});
  }

  template <int kPhase>
  void phase(Index s) {
    constexpr Index group = unit_blocks_of(traits.recurrent[kPhase]);
    const Index groups = (own_blocks.last - own_blocks.first + group - 1) / group;
    // Alternating directions: what a step reads last is what the next one finds in the cache.
    for (Index i = 0; i < groups; ++i) advance<kPhase>(s, own_blocks.first + (s % 2 == 0 ? i : groups - 1 - i) * group);
    w.meet_row();
  }

  // The product and the cell's loop for a group of unit blocks, part by part of the inner dimension.
  template <int kPhase>
  void advance(Index s, Index block) {
    const Index count = smaller(unit_blocks_of(traits.recurrent[kPhase]), own_blocks.last - block);
    const Index end = own_rows.first + running(s);
    for (Index k = 0; k < hidden; k += Tile::KC) {
      const auto ready = make_ready(recurrent_part<kPhase>(block, k), hidden, k, count * traits.recurrent[kPhase].count,
                                    end - own_rows.first);
      for (Index p = own_rows.first; p < end;) {
        const int rows = tile_rows<Tile>(end - p);
        if (w.skip(rows * count * traits.recurrent[kPhase].count * smaller(Tile::KC, hidden))) return;
        multiply<kPhase>(s, p, rows, block, count, k, ready);
        fetch_sums<kPhase>(s, p + rows, end, block, count);
        if (k + Tile::KC >= hidden)
          for (Index i = 0; i < count; ++i) finish<kPhase>(s, p, rows, block + i);
        p += rows;
      }
    }
  }

  // The packed weights of a phase from a unit block and a step of the inner dimension on.
  template <int kPhase>
  const Right* recurrent_part(Index block, Index k) const {
    const Index in_block = packed_inner<Right>(hidden);
    return a.packed.weight_hh + phase_start(traits, kPhase, blocks, in_block) +
           (block * traits.recurrent[kPhase].count * in_block + k) * kBlock;
  }

  Left* h_at(Index s) const { return static_cast<Left*>(a.h) + (s & 1) * schedule.rows * blocks * kBlock; }
  Left* operand() const { return static_cast<Left*>(a.operand); }

  // The next tile's slots, which it would wait for: in training they come from far away.
  template <int kPhase>
  void fetch_sums(Index s, Index p, Index end, Index block, Index count) {
    if (p == end) {
      p = own_rows.first;
      block += count;
      if (block >= own_blocks.last) return;
    }
    const Index rows = smaller(Tile::MR, end - p);
    for (Index j = block; j < smaller(block + count, own_blocks.last); ++j) {
      const A* slot = a.gates.at(j, schedule.offset[s] + p - chunk_row);
      for (Index i = 0; i < rows * a.gates.width; i += kBlock) __builtin_prefetch(slot + i, 1);
    }
  }

  // Adds a part of the recurrent product of a phase to its slots.
  template <int kPhase>
  void multiply(Index s, Index p, int rows, Index block, Index count, Index k, const typename Tile::Ready& ready) {
    constexpr Window window = traits.recurrent[kPhase];
    constexpr int columns = window.count;
    const Left* left = kPhase == 0 ? h_at(s) : operand();
    const Left* row[Tile::MR];
    for (int i = 0; i < rows; ++i) row[i] = left + (p + i) * blocks * kBlock;
    A* out[larger(columns, kRunBlocks)];
    for (Index i = 0; i < count * columns; ++i)
      out[i] =
          a.gates.at(block + i / columns, schedule.offset[s] + p - chunk_row) + (window.first + i % columns) * kBlock;
    typename Tile::Product product;
    product.length = smaller(Tile::KC, hidden - k);
    product.right = recurrent_part<kPhase>(block, k);
    product.right_block = packed_inner<Right>(hidden) * kBlock;
    Tile::use(ready, 0, 0, product);
    product.initial = out;
    product.out = out;
    product.initial_row = product.out_row = a.gates.width;
    Tile::run(rows, RowPointers<Left>{row, k}, product, count * columns);
  }

  // The cell's own loop over a tile of rows in one unit block, while the tile is in the first-level cache.
  template <int kPhase>
  void finish(Index s, Index p, int rows, Index block) {
    if (a.clip > A(0)) return finish_clipped<kPhase>(s, p, rows, block);
    finish_rows<kPhase>(s, p, rows, block, Unclipped());
  }
  template <int kPhase>
  FUSEDRNN_NOINLINE void finish_clipped(Index s, Index p, int rows, Index block) {
    finish_rows<kPhase>(s, p, rows, block, Clipped<V>(V(a.clip)));
  }
  template <int kPhase, class Clip>
  void finish_rows(Index s, Index p, int rows, Index block, const Clip& clip) {
    const A* per_unit = a.packed.per_unit + block * traits.per_unit.rows * kBlock;
    for (int i = 0; i < rows; ++i, ++p) {
      A* slot = a.gates.at(block, schedule.offset[s] + p - chunk_row);
      const Left* h_now = h_at(s) + p * blocks * kBlock + block * kBlock;
      if constexpr (kPhase + 1 < traits.phases) {
        operand_of(slot, h_now, block, operand() + p * blocks * kBlock + block * kBlock, clip);
      } else {
        finish_row(s, p, block, slot, h_now, per_unit, clip);
      }
    }
  }

  template <class Clip>
  void operand_of(A* slot, const Left* h_now, Index block, Left* operand, const Clip& clip) {
    if constexpr (traits.phases == 2) {
      for (Index u = 0; u < kBlock; u += V::lanes) {
        V value[slots];
        for (int k = 0; k < slots; ++k) value[k] = V::load(slot + k * kBlock + u);
        const State<V> previous = {load(h_now + u), V(A(0))};
        const V made = rounded<T>(Cell::operand(value, previous, clip));
        store(Tile::pairs ? first_lanes(made, units_from(block, u)) : made, operand + u);
        for (int k = 0; k < slots; ++k) value[k].store(slot + k * kBlock + u);
      }
    }
  }

  Gate<T>* gates_kept(A* slot, Index block, Index packed_row) const {
    if constexpr (keeps)
      return a.kept.at(block, packed_row - cells_row);
    else
      return slot;
  }
  template <class Clip>
  void finish_row(Index s, Index p, Index block, A* slot, const Left* h_now, const A* per_unit, const Clip& clip) {
    const Index b = schedule.row[p], unit = block * kBlock;
    const bool last = s + 1 == schedule.length[p];
    const bool cut = !last && schedule.cut(s + 1, p);
    T* y = a.y.data ? a.y.at(schedule.time(s, p), b) + unit : nullptr;
    Left* h_next = h_at(s + 1) + p * blocks * kBlock + unit;
    for (Index u = 0; u < kBlock; u += V::lanes) {
      const int units = units_from(block, u);
      V value[slots], weight[traits.per_unit.rows + 1];
      for (int k = 0; k < slots; ++k) value[k] = V::load(slot + k * kBlock + u);
      for (int k = 0; k < traits.per_unit.rows; ++k) weight[k] = V::load(per_unit + k * kBlock + u);
      State<V> previous = {load(h_now + u), V(A(0))}, next;
      if constexpr (has_c) previous.c = V::load(a.carry.at(block, p) + u);
      Cell::forward(value, previous, weight, next, clip);
      if (a.training) {
        auto* to = gates_kept(slot, block, schedule.offset[s] + p);
        for (int k = 0; k < slots; ++k) store_gate(value[k], Cell::range(k), to + k * kBlock + u);
      }
      if (y) store_partial(next.h, y + u, units);
      const V entering = cut ? V(A(0)) : rounded<T>(next.h);
      store(Tile::pairs ? first_lanes(entering, units) : entering, h_next + u);
      if (last && a.hn.data) store_partial(next.h, a.hn.at(b) + unit + u, units);
      if constexpr (has_c) {
        if (a.training) next.c.store(a.cells.at(block, schedule.offset[s] + p - cells_row) + u);
        (cut ? V(A(0)) : next.c).store(a.carry.at(block, p) + u);
        if (last && a.cn.data) next.c.store_partial(a.cn.at(b) + unit + u, units);
      }
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
