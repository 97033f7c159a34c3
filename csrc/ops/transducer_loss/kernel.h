// The loss of a transducer (Graves 2012): -log p(targets), summed over all paths through the lattice (lattice.h). Its
// cell (t, u) has the hidden values h = tanh(encoder_t + predictor_u) and the logits h W^T + b, whose softmax gives the
// probabilities of a blank and of the next label. With the occupancy of a cell, which is the probability that a path of
// the targets comes by,
//   dlogits(c) = occupancy * softmax(c) - (how probable it is that a path goes on from there by c)
//   dencoder_t = sum over u of dh (1 - h^2),  dpredictor_u = sum over t of dh (1 - h^2)
// The joint is that of linear/kernel.h: hidden values and logits exist for a chunk of cells at a time and are computed
// again in the backward pass. That leaves out the cells which no path visits but for one in 2^60 (or 2^120): what they
// would add is far below the rounding of the others, for every frame and every label has a path with certainty. The
// sums over a row's cells run from the last one to the first, whatever the chunks: its gradients depend on it alone.
#pragma once
#include "ops/linear/kernel.h"
#include "ops/linear/normaliser.h"
#include "ops/transducer_loss/arguments.h"
#include "ops/transducer_loss/lattice.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
constexpr Real kNegligible = sizeof(Real) == 4 ? Real(0x1p-60) : Real(0x1p-120);

template <class Real, class Tile = FmaTile<Real>>
class TransducerLoss : LinearProducts<Real, Tile> {
  using Base = LinearProducts<Real, Tile>;
  using Base::blocks, Base::w;
  using V = Vec<Real>;
  // A class that is not there has probability 0.
  static constexpr Real kAbsent = -Real(__builtin_inf());

 public:
  TransducerLoss(const TransducerLossArguments<Real>& arguments, Worker& worker)
      : Base(arguments, worker), a(arguments) {}

  void forward() {
    Base::pack(kAbsent);
    w.meet();
    const Range mine = part_of(a.rows, w.thread, w.threads());
    for (Index n = mine.first; n < mine.last && !w.skip(0); n += kForwardRows)
      emit({n, smaller(n + kForwardRows, mine.last)});
    w.meet();
    for (Index b = w.thread; b < a.batch && !w.stopped(); b += w.threads()) a.losses[b] = lattice_of(b).loss();
  }

  void backward() {
    Base::pack(kAbsent);
    Base::pack_transposed();
    for (Index b = w.thread; b < a.batch && !w.stopped(); b += w.threads()) visit(b);
    w.meet();
    if (w.thread == 0) number_cells();
    w.meet();
    Index last = a.frames[a.frame_count].start, chunk = 0;
    for (; last > 0; last = larger(0, last - a.chunk_rows), ++chunk) {
      if (!w.go_on(chunk)) return;
      differentiate({larger(0, last - a.chunk_rows), last});
    }
  }

 private:
  const TransducerLossArguments<Real>& a;

  // Calls use(frame, u, i) for the cells [cells.first, cells.last), which are numbered from `origin` on.
  template <class Use>
  void each_cell(Range cells, Index origin, const Use& use) const {
    const TransducerFrame* frame = frame_of(cells.first);
    for (Index n = cells.first; n < cells.last; ++frame) {
      const Index end = smaller(cells.last, frame->start + frame->count);
      for (; n < end; ++n) use(*frame, frame->first + n - frame->start, n - origin);
    }
  }
  // As each_cell, from the last one to the first.
  template <class Use>
  void each_cell_backwards(Range cells, const Use& use) const {
    const TransducerFrame* frame = frame_of(cells.last - 1);
    for (Index n = cells.last; n > cells.first; --frame) {
      const Index first = larger(cells.first, frame->start);
      for (; n > first; --n) use(*frame, frame->first + n - 1 - frame->start, n - 1 - cells.first);
    }
  }
  // The frame that holds a cell. Frames without cells begin where the next one does.
  const TransducerFrame* frame_of(Index cell) const {
    Index low = 0, high = a.frame_count;
    while (high - low > 1) {
      const Index middle = low + (high - low) / 2;
      (a.frames[middle].start <= cell ? low : high) = middle;
    }
    return a.frames + low;
  }

  void join(const TransducerFrame& frame, Index u, Real* hidden) const {
    const Real *encoder = a.encoder.at(frame.time, frame.row), *predictor = a.predictor.at(u, frame.row);
    each_part({0, a.in_features}, [&](Index j, int lanes) {
      store(tanh(load(encoder + j, lanes) + load(predictor + j, lanes)), hidden + j, lanes);
    });
  }
  // Calls use(first, count) for each vector of some columns.
  template <class Use>
  FUSEDRNN_INLINE static void each_part(Range columns, const Use& use) {
    Index j = columns.first;
    for (; j + V::lanes <= columns.last; j += V::lanes) use(j, V::lanes);
    if (j < columns.last) use(j, static_cast<int>(columns.last - j));
  }
  // As many lanes of a vector, which mostly are all of them.
  FUSEDRNN_INLINE static V load(const Real* from, int lanes) {
    return lanes == V::lanes ? V::load(from) : V::load_partial(from, lanes);
  }
  FUSEDRNN_INLINE static void store(V value, Real* to, int lanes) {
    lanes == V::lanes ? value.store(to) : value.store_partial(to, lanes);
  }

  // Forward: normalisers, and log-probabilities of the blank and of the next label, of at most kForwardRows cells.
  void emit(Range cells) {
    const Index first = w.thread * kForwardRows;  // of this thread's rows of x
    const Blocked<Real> logits = {a.products + first * a.chunk_blocks * kBlock, kForwardRows, kBlock};
    Normaliser<Real> normaliser[kForwardRows];
    Real blank[kForwardRows] = {}, label[kForwardRows] = {};
    Index target[kForwardRows];
    each_cell(cells, cells.first, [&](const TransducerFrame& frame, Index u, Index i) {
      join(frame, u, a.hidden + (first + i) * a.in_features);
      target[i] = target_of(frame, u);
    });
    const Index count = cells.last - cells.first;
    for (Index v = 0; v < blocks; v += a.chunk_blocks) {
      const Index end = smaller(v + a.chunk_blocks, blocks);
      Base::multiply({first, first + count}, v, end, v, logits);
      if (w.skip(0)) return;
      for (Index i = 0; i < count; ++i) {
        normaliser[i].add(logits, i, end - v);
        pick(logits, i, a.blank - v * kBlock, end - v, blank[i]);
        pick(logits, i, target[i] - v * kBlock, end - v, label[i]);
      }
    }
    each_cell(cells, cells.first, [&](const TransducerFrame& frame, Index u, Index i) {
      const Index cell = frame.cells + u;
      const Real maximum = normaliser[i].maximum, log_sum = natural_log(normaliser[i].sum);
      const bool any = normaliser[i].sum != Real(0);  // else all classes are impossible
      a.maximum[cell] = maximum;
      a.log_sum[cell] = log_sum;
      a.log_blank[cell] = any ? (blank[i] - maximum) - log_sum : kAbsent;
      a.log_label[cell] = any && target[i] >= 0 ? (label[i] - maximum) - log_sum : kAbsent;
    });
  }
  Index target_of(const TransducerFrame& frame, Index u) const {
    const TransducerRow& row = a.row[frame.row];
    return u < row.length ? row.targets[u] : -1;
  }
  // The logit of a class, which counts from the first of these blocks, if it is one of theirs.
  static void pick(const Blocked<Real>& logits, Index row, Index number, Index count, Real& logit) {
    if (number >= 0 && number < count * kBlock) logit = logits.at(number / kBlock, row)[number % kBlock];
  }

  TransducerLattice<Real> lattice_of(Index b) const {
    const Index cells = a.row[b].cells;
    return {a.row[b], a.log_blank + cells, a.log_label + cells, a.lattice + w.thread * a.lattice_size};
  }

  // Backward: how often the paths of a row visit its cells, and which of them are computed.
  void visit(Index b) const {
    const TransducerRow& row = a.row[b];
    const Real loss = a.losses[b];
    const Index width = row.length + 1, cells = row.steps * width;
    Real *to_blank = a.to_blank + row.cells, *to_label = a.to_label + row.cells;
    if (loss != loss)
      for (Index i = 0; i < cells; ++i) to_blank[i] = to_label[i] = loss;
    else if (loss != Real(__builtin_inf()))
      lattice_of(b).occupancies(to_blank, to_label);
    for (Index t = 0; t < row.steps; ++t, to_blank += width, to_label += width) {
      TransducerFrame& frame = a.frames[row.frames + t];
      const auto counts = [&](Index u) { return !(to_blank[u] + to_label[u] < kNegligible<Real>); };
      Index first = 0, last = loss == Real(__builtin_inf()) ? 0 : width;
      while (first < last && !counts(first)) ++first;
      while (last > first && !counts(last - 1)) --last;
      frame.first = first;
      frame.count = last - first;
    }
  }
  void number_cells() const {
    Index start = 0;
    for (Index f = 0; f <= a.frame_count; ++f) {
      a.frames[f].start = start;
      start += a.frames[f].count;
    }
  }

  // One chunk of the backward pass.
  void differentiate(Range cells) {
    const Index count = cells.last - cells.first;
    const Range rows = {0, count}, mine = part_of(count, w.thread, w.threads());
    const Range classes = part_of(blocks, w.thread, w.threads());
    const Blocked<Real> logits = {a.products, a.chunk_rows, kBlock};
    each_cell({cells.first + mine.first, cells.first + mine.last}, cells.first,
              [&](const TransducerFrame& frame, Index u, Index i) {
                join(frame, u, a.hidden + i * a.in_features);
                a.cell[i] = cell_of(frame, u);
              });
    Base::stage_x(rows);
    w.meet();
    Base::multiply(rows, classes.first, classes.last, 0, logits);
    for (Index v = classes.first; v < classes.last && !w.skip(count * kPackedElement); ++v)
      differentiate_block(count, v, logits);
    w.meet();
    Base::input_gradient(rows, logits);
    Base::weight_gradient(rows, classes, logits, true);
    w.meet();
    add_inputs(cells);
  }

  TransducerCell<Real> cell_of(const TransducerFrame& frame, Index u) const {
    const Index n = frame.cells + u;
    const Real scale = a.scale[frame.row], blank = a.to_blank[n] * scale, label = a.to_label[n] * scale;
    return {a.maximum[n], a.log_sum[n], blank + label, blank, label, target_of(frame, u)};
  }

  // Turns logits of one block of classes into their gradients, in place.
  void differentiate_block(Index count, Index block, const Blocked<Real>& logits) const {
    const Index blank = a.blank - block * kBlock;
    for (Index i = 0; i < count; ++i) {
      const TransducerCell<Real>& cell = a.cell[i];
      Real* row = logits.at(block, i);
      for (Index u = 0; u < kBlock; u += V::lanes) {
        const V probability = exp((V::load(row + u) - V(cell.maximum)) - V(cell.log_sum));
        (probability * V(cell.occupancy)).store(row + u);
      }
      const Index target = cell.target - block * kBlock;
      if (blank >= 0 && blank < kBlock) row[blank] -= cell.blank;
      if (target >= 0 && target < kBlock) row[target] -= cell.label;
    }
  }

  // From the gradients of the chunk's hidden values to those of encoder and predictor; each thread has columns.
  void add_inputs(Range cells) const {
    const Range mine = part_of(blocks_of(a.in_features), w.thread, w.threads());
    const Range columns = {mine.first * kBlock, smaller(mine.last * kBlock, a.in_features)};
    const V one(Real(1));
    each_cell_backwards(cells, [&](const TransducerFrame& frame, Index u, Index i) {
      const Real *hidden = a.hidden + i * a.in_features, *dhidden = a.dx + i * a.in_features;
      Real* dencoder = a.dencoder + (frame.time * a.batch + frame.row) * a.in_features;
      Real* dpredictor = a.dpredictor + (u * a.batch + frame.row) * a.in_features;
      each_part(columns, [&](Index j, int lanes) {
        const V h = load(hidden + j, lanes), gradient = load(dhidden + j, lanes) * fma(-h, h, one);
        store(load(dencoder + j, lanes) + gradient, dencoder + j, lanes);
        store(load(dpredictor + j, lanes) + gradient, dpredictor + j, lanes);
      });
    });
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
