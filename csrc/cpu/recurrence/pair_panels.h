// The operands of the weight gradients where numbers of 16 bits are multiplied in pairs of rows. Every sum runs over
// groups of kPairGroup rows, counted from the last row of all, the last group first; within a group rows ascend. So
// that no sum depends on the chunks of time, the rows before a chunk's first whole group wait for the next chunk.
#pragma once
#include "cpu/gemm/pair_tile.h"
#include "cpu/runtime/worker.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Left>
class PairPanels {
  using T = Bfloat16;
  static constexpr bool turns = std::is_same_v<Left, T>;

 public:
  PairPanels(const BackwardArguments<T>& arguments, const Blocked<Left>& gradient, Index gradient_runs, Worker& worker)
      : a(arguments), dgates(gradient), runs(gradient_runs), w(worker) {}

  Index first_row() const { return first_row_; }  // packed row of the panels' row 0
  Range outer() const { return outer_; }          // rows for which products are due

  // Moves to a chunk of `rows` packed rows from chunk_row on, the rows that wait behind it. `last`: no chunk follows.
  void begin(Index chunk_row, Index rows, bool last) {
    const Index part = (rows + waiting) % kPairGroup, before = part > 0 ? kPairGroup - part : 0;
    first_row_ = chunk_row - before;
    filled = {before, before + rows};
    outer_ = {last || before == 0 ? 0 : kPairGroup, filled.last + waiting};
    each_panel([&](auto panel, Range blocks, auto width) {
      for (Index j = blocks.first; j < blocks.last; ++j) {
        // Of pairs, one may be split between a row that waits and one that this chunk brings: it moves whole.
        const Index from = (kPairGroup - waiting) / width * width;
        if (waiting > 0)
          __builtin_memmove(panel.at(j, filled.last - (kPairGroup - waiting - from)), panel.at(j, from),
                            static_cast<std::size_t>((kPairGroup - from) * kBlock) * sizeof *panel.data);
        if (last) clear(panel.at(j, 0), before / width * width * kBlock);
      }
    });
    waiting = last ? 0 : part;
  }

  // The chunk's rows of x and of the previous h: row(r) gives both of packed row r, null for zeros. Each thread fills
  // blocks of its own.
  template <class Row>
  void stage(const Row& row) {
    const Range inputs = blocks_of_thread(a.gradients.weight_ih ? blocks_of(a.input_size) : 0);
    const Range units = blocks_of_thread(blocks_of(a.hidden_size));
    for (Index r = filled.first / 2 * 2; r < filled.last; r += 2) {
      if (w.skip(inputs.last - inputs.first + units.last - units.first)) return;
      const auto first = r >= filled.first ? row(first_row_ + r) : Rows{};
      const bool keep = r + 1 == filled.last;  // a row that waited
      const auto second = keep ? Rows{} : row(first_row_ + r + 1);
      for (Index i = inputs.first; i < inputs.last; ++i)
        put(first.x, second.x, keep, i, a.input_size, a.x_panel.at(i, r));
      for (Index j = units.first; j < units.last; ++j)
        put(first.h, second.h, keep, j, a.hidden_size, a.h_panel.at(j, r));
    }
  }
  struct Rows {
    const T *x = nullptr, *h = nullptr;
  };

  // Rows of a run of gate gradients as the left operand of the products that are due.
  void turn_gradient(Index run) {
    if constexpr (turns) turn(dgates, run, a.dgate_pairs);
  }
  const Blocked<Left>& left() const {
    if constexpr (turns)
      return a.dgate_pairs;
    else
      return dgates;
  }
  // The second phase's operand, once all threads have left its rows.
  void turn_operand() {
    const Range units = blocks_of_thread(blocks_of(a.hidden_size));
    for (Index j = units.first; j < units.last; ++j) turn(a.operand_rows, j, a.operand_panel);
    w.meet();
  }

 private:
  const BackwardArguments<T>& a;
  const Blocked<Left> dgates;
  const Index runs;  // of 16 units of gate gradients
  Worker& w;
  Index first_row_ = 0;
  Range outer_ = {0, 0};
  Range filled = {0, 0};  // the chunk's own rows
  Index waiting = 0;      // rows that wait, the last ones before row kPairGroup

  Range blocks_of_thread(Index blocks) const { return part_of(blocks, w.thread, w.threads()); }

  // visit(panel, this thread's blocks of it, rows that lie side by side)
  template <class Visit>
  void each_panel(const Visit& visit) {
    const Range units = blocks_of_thread(blocks_of(a.hidden_size));
    visit(dgates, blocks_of_thread(runs), Index(1));
    if (a.gradients.weight_ih) visit(a.x_panel, blocks_of_thread(blocks_of(a.input_size)), Index(2));
    visit(a.h_panel, units, Index(2));
    if (a.operand_rows.data) visit(a.operand_rows, units, Index(1));
  }

  static void put(const T* first, const T* second, bool keep, Index block, Index size, T* to) {
    const Index at = block * kBlock, count = smaller(kBlock, size - at);
    T kept[kPairBlock];
    if (keep) __builtin_memcpy(kept, to, sizeof kept);
    PairTile::store_pair(first ? first + at : nullptr, second ? second + at : nullptr, count, to);
    for (Index u = 1; keep && u < kPairBlock; u += 2) to[u] = kept[u];
  }
  void turn(const Blocked<T>& rows, Index block, const Blocked<T>& to) const {
    for (Index r = outer_.first; r < outer_.last; r += 2)
      PairTile::store_pair(rows.at(block, r), rows.at(block, r + 1), kBlock, to.at(block, r));
  }
};

// Operands that are multiplied row by row: a chunk's panels hold its rows.
class RowPanels {
 public:
  template <class... Unused>
  explicit RowPanels(const Unused&...) {}
  Index first_row() const { return first_row_; }
  Range outer() const { return {0, rows_}; }
  void begin(Index chunk_row, Index rows, bool) {
    first_row_ = chunk_row;
    rows_ = rows;
  }

 private:
  Index first_row_ = 0, rows_ = 0;
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
