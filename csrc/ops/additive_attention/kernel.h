// Additive attention (Bahdanau et al. 2015): of a query h and the rows m_j of a memory
//   e_j = weight_score . tanh(weight_query h + key_j),   key_j = weight_memory m_j + bias
//   a = softmax(e),   context = sum of a_j m_j
// or, of one location j drawn from a or the most probable one, context = m_j (Xu et al. 2015). Of dcontext come
//   da_j = dcontext . m_j,   de_j = a_j (da_j - sum of a_k da_k)
// and of the logarithm of the drawn location's probability, and of the distribution's entropy H,
//   de_j = dlog_prob (1 [j is drawn] - a_j) - dentropy a_j (log a_j + H)
// from where, with u = 1 - tanh^2 made again,
//   dquery = weight_score * sum of de_j u_j,   dkey_j += weight_score de_j u_j,   dweight_score += de_j tanh
// Exponentials are made once a query and once a key, rather than for each of their sums: with E = exp(2 query) exp(2
// key) and r = 1 / (1 + E), tanh(query + key) = 1 - 2 r and u = 4 E r^2. Sums of weight_score tanh are taken but for
// the sum of weight_score, which the softmax would cancel. Two locations, or two blocks of a score, share a division.
// Where a query or a key is so large that a product of two powers might overflow, tanh is taken of each sum. A row of
// the batch belongs to the threads of one row part. They share a step's projected queries, locations, columns of the
// context and so on, and meet in between.
#pragma once
#include "common/dropout_hash.h"
#include "cpu/gemm/fma_tile.h"
#include "cpu/gemm/gradients.h"
#include "ops/additive_attention/arguments.h"
#include "ops/additive_attention/sums.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real, class Tile = FmaTile<Real>>
class AdditiveAttention {
  using V = Vec<Real>;
  using Arguments = AdditiveAttentionArguments<Real>;
  using Part = typename Arguments::Part;
  using Gradients = GradientProducts<Tile>;
  static constexpr Index kRunBlocks = Tile::NR / kBlock;
  // What a tanh and what is added up of it takes, in multiply-adds.
  static constexpr Index kTanh = 8;
  // Queries and keys up to which powers are computed with: exp(2 x)^4 is finite.
  static constexpr Real kBound = sizeof(Real) == 4 ? Real(10) : Real(80);

 public:
  AdditiveAttention(const Arguments& arguments, Worker& worker)
      : a(arguments),
        w(worker),
        schedule(a.schedule),
        width(a.memory.width()),
        own_rows(rows_of(schedule, w.row_part(), w.split.row_parts)),
        own_blocks(part_of(width / kBlock, w.unit_part(), w.split.unit_parts)) {}

  void forward() {
    if (a.part == Part::pack) return pack();
    if (a.part == Part::keys) return make_powers();
    for (Index s = a.first_step; s < a.last_step; ++s) attend(s);
  }

  void backward() {
    switch (a.part) {
      case Part::pack:
        return pack();
      case Part::keys:
        return scale_key_gradients();
      case Part::steps:
        for (Index s = a.last_step; s-- > a.first_step;) differentiate(s);
        return;
      case Part::chunk:
        return query_weight_gradient();
      case Part::memory:
        return memory_gradient();
    }
  }

 private:
  const Arguments& a;
  Worker& w;
  const Schedule& schedule;
  const Index width;  // padded A
  const Range own_rows, own_blocks;

  Index end_of(Index s) const { return smaller(own_rows.last, schedule.active[s]); }
  Index memory_of(Index p) const { return a.memory_row ? a.memory_row[schedule.row[p]] : schedule.row[p]; }
  Real* query_at(Index p) const { return a.query + 2 * p * width; }
  const Real* query_powers(Index p) const { return query_at(p) + width; }
  Real* scores_at(Index p) const { return a.scores + p * padded(a.locations); }
  const Real* values_of(Index memory) const { return a.memory.values + a.memory.first[memory] * a.memory.features; }
  const Real* keys_of(Index memory) const { return a.memory.keys + a.memory.first[memory] * width; }
  const Real* powers_of(Index memory) const { return a.memory.powers + a.memory.first[memory] * width; }
  // This thread's part of a row's locations or of a context's columns.
  Range share_of(Index count) const {
    const Range blocks = part_of(blocks_of(count), w.unit_part(), w.split.unit_parts);
    return {smaller(count, blocks.first * kBlock), smaller(count, blocks.last * kBlock)};
  }
  // Whether what takes a whole row is this thread's to do.
  bool own(Index p) const { return (p - own_rows.first) % w.split.unit_parts == w.unit_part(); }

  void pack() {
    const Index blocks = width / kBlock, stride = width * kBlock;
    for (Index j = 0; j < blocks; ++j)
      Tile::pack_forward(a.weight_query + j * kBlock * a.query_size, a.query_size, units_in(j),
                         a.packed_query + j * a.query_size * kBlock);
    if (!a.packed_query_backward) return;
    for (Index j = 0; j < blocks_of(a.query_size); j += kRunBlocks)
      Tile::pack_backward(a.weight_query, a.query_size, j, smaller(kRunBlocks, blocks_of(a.query_size) - j),
                          a.memory.size, Window{0, 1, {0}}, a.packed_query_backward + j * stride, stride);
  }

  static V power(V x) { return exp(x + x); }
  // Whether all of a row's numbers are so small in magnitude that their powers may be multiplied. A nan is not.
  static bool bounded(const Real* row, Index count) {
    Partials<Real> largest(Real(0));
    for (Index i = 0; i < count; i += V::lanes) {
      const V x = V::load(row + i);
      V& most = largest.part[i / V::lanes % Partials<Real>::kVectors];
      most = at_least(x * x, most);  // a nan stays
    }
    return largest.all_at_most(kBound * kBound);
  }

  void make_powers() {
    const Range rows = part_of(schedule.rows, w.thread, w.threads());
    for (Index b = rows.first; b < rows.last; ++b) {
      const Index count = a.memory.count(b) * width;
      const Real* keys = keys_of(b);
      a.memory.bounded[b] = bounded(keys, count);
      if (w.skip(count / kBlock * kTanh)) return;
      Real* powers = a.memory.powers + a.memory.first[b] * width;
      for (Index i = 0; i < count; i += V::lanes) power(V::load(keys + i)).store(powers + i);
    }
  }

  void scale_key_gradients() {
    const Range mine = part_of(a.memory.first[schedule.rows], w.thread, w.threads());
    for (Index j = mine.first; j < mine.last; ++j)
      for (Index i = 0; i < width; i += V::lanes) {
        Real* gradient = a.dkeys + j * width + i;
        (V::load(gradient) * V::load(a.weight_score + i)).store(gradient);
      }
  }

  int units_in(Index block) const { return static_cast<int>(smaller(kBlock, a.memory.size - block * kBlock)); }

  // A step's query, or null where it is zero.
  const Real* left(Index s, Index p) const {
    if (a.state.data) return a.state.at(p);
    const Index b = schedule.row[p];
    if (a.queries.data) return a.queries.at(s, b);
    if (s > 0) return a.outputs.at(s - 1, b);
    return a.initial.data ? a.initial.at(b) : nullptr;
  }

  // This thread's blocks of the projected queries of its rows.
  void project(Index s, Index end) {
    for (Index p = own_rows.first; p < end;) {
      const int rows = tile_rows<Tile>(end - p);
      const Real* row[Tile::MR];
      for (int i = 0; i < rows; ++i) row[i] = left(s, p + i);
      for (Index j = own_blocks.first; j < own_blocks.last; j += kRunBlocks)
        project_tile(row, rows, j, smaller(kRunBlocks, own_blocks.last - j), query_at(p) + j * kBlock);
      if (w.skip(rows * a.query_size * (own_blocks.last - own_blocks.first))) return;
      for (int m = 0; m < rows; ++m)
        for (Index i = own_blocks.first * kBlock; i < own_blocks.last * kBlock; i += V::lanes)
          power(V::load(query_at(p + m) + i)).store(query_at(p + m) + width + i);
      p += rows;
    }
  }
  bool by_powers(Index p) const { return a.memory.bounded[memory_of(p)] && bounded(query_at(p), width); }
  void project_tile(const Real* const* row, int rows, Index block, Index count, Real* to) {
    Real* out[kRunBlocks];
    const Real* initial[kRunBlocks];
    for (Index i = 0; i < count; ++i) out[i] = to + i * kBlock, initial[i] = zeros(Real(0));
    if (!row[0]) {  // an initial state that is zero is so in all rows
      for (int m = 0; m < rows; ++m) clear(to + m * 2 * width, count * kBlock);
      return;
    }
    for (Index k = 0; k < a.query_size; k += Tile::KC) {
      typename Tile::Product product;
      product.length = smaller(Tile::KC, a.query_size - k);
      product.right = a.packed_query + (block * a.query_size + k) * kBlock;
      product.right_block = a.query_size * kBlock;
      product.initial = k > 0 ? out : initial;
      product.initial_row = k > 0 ? 2 * width : 0;
      product.out = out;
      product.out_row = 2 * width;
      Tile::run(rows, RowPointers<Real>{row, k}, product, count);
    }
  }

  void attend(Index s) {
    const Index end = end_of(s);
    project(s, end);
    w.meet_row();
    for (Index p = own_rows.first; p < end; ++p) {
      const Index memory = memory_of(p);
      const Range locations = share_of(a.memory.count(memory));
      if (w.skip((locations.last - locations.first) * width / kBlock * kTanh)) break;
      Real* scores = a.attention.at(s, schedule.row[p]);
      if (by_powers(p))
        score_by_powers(query_powers(p), powers_of(memory), locations, scores);
      else
        score(query_at(p), keys_of(memory), locations, scores);
    }
    w.meet_row();
    for (Index p = own_rows.first; p < end; ++p)
      if (own(p)) normalise(s, p);
    w.meet_row();
    for (Index p = own_rows.first; p < end; ++p) {
      if (w.skip(a.memory.count(memory_of(p)) * a.memory.features / kBlock)) break;
      read(s, p, share_of(a.memory.features));
    }
    w.meet_row();
  }

  void score(const Real* query, const Real* keys, Range locations, Real* scores) {
    location_sums(
        locations,
        [&](Index j, Partials<Real>& partial) {
          const Real* key = keys + j * width;
          for (Index c = 0; c < width; c += kBlock)
            for (Index k = 0; k < kBlock / V::lanes; ++k) {
              const Index i = c + k * V::lanes;
              partial.part[k] =
                  fma(V::load(a.weight_score + i), tanh(V::load(query + i) + V::load(key + i)), partial.part[k]);
            }
        },
        scores);
  }

  void score_by_powers(const Real* query, const Real* powers, Range locations, Real* scores) {
    const Real* weight = a.weight_score + width;  // times -2
    const V one(Real(1));
    location_sums(
        locations,
        [&](Index j, Partials<Real>& partial) {
          const Real* power = powers + j * width;
          Index c = 0;
          for (; c + 2 * kBlock <= width; c += 2 * kBlock)
            for (Index k = 0; k < kBlock / V::lanes; ++k) {
              const Index i = c + k * V::lanes, next = i + kBlock;
              const V first = fma(V::load(power + i), V::load(query + i), one);
              const V second = fma(V::load(power + next), V::load(query + next), one);
              const V sum = fma(V::load(weight + i), second, V::load(weight + next) * first);
              partial.part[k] += sum / (first * second);
            }
          for (Index k = 0; c < width && k < kBlock / V::lanes; ++k) {
            const Index i = c + k * V::lanes;
            partial.part[k] += V::load(weight + i) / fma(V::load(power + i), V::load(query + i), one);
          }
        },
        scores);
  }

  // Scores become a distribution; of the location at hand its logarithm, and the entropy.
  void normalise(Index s, Index p) {
    const Index b = schedule.row[p], count = a.memory.count(memory_of(p));
    Real* row = a.attention.at(s, b);
    for (Index j = count; j < a.locations; ++j) row[j] = Real(0);
    Real entropy(0), log_sum(0), maximum(0);
    if (count > 0) {
      maximum = row_maximum(row, count);
      const Real sum = row_exponential_sum(row, count, maximum);
      log_sum = natural_log(sum);
      Partials<Real> mean(Real(0));
      each_vector(row, count, maximum, [&](Index k, Index first, int lanes, V score) {
        const V relative = score - V(maximum), share = exp(relative) / V(sum);
        if (a.entropy.data) mean.part[k] = fma(share, relative, mean.part[k]);
        share.store_partial(row + first, lanes);
      });
      if (a.entropy.data) entropy = log_sum - mean.sum();
    }
    if (a.kind == Attention::soft) return;
    const Index location = a.kind == Attention::drawn ? draw(row, count, s, b) : most_probable(row, count);
    *a.location.at(s, b) = location;
    if (a.log_prob.data) *a.log_prob.at(s, b) = location < 0 ? Real(0) : natural_log(row[location]);
    if (a.entropy.data) *a.entropy.at(s, b) = entropy;
  }

  // The first location up to which the sum of probabilities is above a uniform number.
  Index draw(const Real* row, Index count, Index s, Index b) const {
    const std::uint64_t hash = DropoutHash::next(DropoutHash::next(a.key, s), b);
    const double uniform = static_cast<double>(hash >> 11) * 0x1p-53;
    double total = 0, sum = 0;
    for (Index j = 0; j < count; ++j) total += static_cast<double>(row[j]);
    Index last = count - 1;
    for (Index j = 0; j < count; ++j) {
      sum += static_cast<double>(row[j]);
      if (sum > uniform * total) return j;
      if (row[j] > 0) last = j;
    }
    return last;
  }
  static Index most_probable(const Real* row, Index count) {
    Index best = count > 0 ? 0 : -1;
    for (Index j = 1; j < count; ++j)
      if (row[j] > row[best]) best = j;
    return best;
  }

  // A share of the columns of a row's context.
  void read(Index s, Index p, Range columns) {
    const Index b = schedule.row[p], memory = memory_of(p), features = a.memory.features;
    const Real* values = values_of(memory);
    Real* context = a.context.at(s, b);
    if (a.kind == Attention::soft) {
      const Real* share = a.attention.at(s, b);
      return weighted_rows<Real>(
          a.memory.count(memory), [&](Index j) { return share[j]; }, [&](Index j) { return values + j * features; },
          columns, nullptr, context);
    }
    const Index location = *a.location.at(s, b);
    for (Index c = columns.first; c < columns.last; ++c)
      context[c] = location < 0 ? Real(0) : values[location * features + c];
  }

  void differentiate(Index s) {
    const Index end = end_of(s);
    project(s, end);
    if (a.total.data)
      for (Index p = own_rows.first; p < end; ++p) add_up_gradient(s, p, share_of(a.memory.features));
    w.meet_row();
    if (a.kind == Attention::soft) {
      for (Index p = own_rows.first; p < end; ++p) {
        const Range locations = share_of(a.memory.count(memory_of(p)));
        if (w.skip((locations.last - locations.first) * a.memory.features / kBlock)) break;
        share_gradient(s, p, locations);
      }
      w.meet_row();
    }
    for (Index p = own_rows.first; p < end; ++p)
      if (own(p)) a.kind == Attention::soft ? score_gradient(s, p) : location_gradient(s, p);
    w.meet_row();
    for (Index p = own_rows.first; p < end; ++p) {
      if (w.skip(a.memory.count(memory_of(p)) * (own_blocks.last - own_blocks.first) * kTanh)) break;
      const bool powers = by_powers(p);
      for (Index j = own_blocks.first; j < own_blocks.last; ++j)
        powers ? key_gradient<true>(s, p, j) : key_gradient<false>(s, p, j);
    }
    if (!a.dh.data) return;
    w.meet_row();
    query_gradient(s, end);
  }

  // Gradient of the context, from outside and through the cell.
  void add_up_gradient(Index s, Index p, Range columns) {
    const Index b = schedule.row[p];
    const Real *late = a.late.at(p), *given = a.dcontext.data ? a.dcontext.at(s, b) : nullptr;
    Real* total = a.total.at(s, b);
    for (Index c = columns.first; c < columns.last; ++c) total[c] = given ? late[c] + given[c] : late[c];
  }
  const Real* context_gradient(Index s, Index b) const {
    if (a.total.data) return a.total.at(s, b);
    return a.dcontext.data ? a.dcontext.at(s, b) : nullptr;
  }

  // Gradients of the probabilities.
  void share_gradient(Index s, Index p, Range locations) {
    const Index b = schedule.row[p], features = a.memory.features;
    const Real *dcontext = context_gradient(s, b), *values = values_of(memory_of(p));
    Real* gradient = scores_at(p);
    if (dcontext)
      location_sums(
          locations,
          [&](Index j, Partials<Real>& partial) { add_dot(dcontext, values + j * features, features, partial); },
          gradient);
    else
      for (Index j = locations.first; j < locations.last; ++j) gradient[j] = Real(0);
    if (!a.dattention.data) return;
    const Real* given = a.dattention.at(s, b);
    for (Index j = locations.first; j < locations.last; ++j) gradient[j] += given[j];
  }

  // Gradients of the scores, in place.
  void score_gradient(Index s, Index p) {
    const Index count = a.memory.count(memory_of(p));
    const Real* share = a.attention.at(s, schedule.row[p]);
    Real* gradient = scores_at(p);
    Partials<Real> partial(Real(0));
    add_dot(share, const_cast<const Real*>(gradient), count, partial);
    const Real mean = partial.sum();
    for (Index j = 0; j < count; ++j) gradient[j] = share[j] * (gradient[j] - mean);
  }
  void location_gradient(Index s, Index p) {
    const Index b = schedule.row[p], count = a.memory.count(memory_of(p)), location = *a.location.at(s, b);
    const Real* share = a.attention.at(s, b);
    const Real dlog_prob = a.dlog_prob.data ? *a.dlog_prob.at(s, b) : Real(0);
    const Real dentropy = a.dentropy.data ? *a.dentropy.at(s, b) : Real(0);
    Real* gradient = scores_at(p);
    for (Index j = 0; j < count; ++j) {
      gradient[j] = dlog_prob * ((j == location ? Real(1) : Real(0)) - share[j]);
      if (dentropy != 0 && share[j] > 0)
        gradient[j] -= dentropy * share[j] * (natural_log(share[j]) + *a.entropy.at(s, b));
    }
  }

  // A block of a row's projected query and of its keys, and its share of the gradient of weight_score.
  template <bool kPowers>
  FUSEDRNN_NOINLINE void key_gradient(Index s, Index p, Index block) {
    const Index b = schedule.row[p], memory = memory_of(p), unit = block * kBlock;
    Real* dkeys = a.dkeys + a.memory.first[memory] * width + unit;
    Real* dscore = a.dscore + b * width + unit;
    Real* dquery =
        a.dqueries.data ? a.dqueries.at(s, b) + unit : a.dquery_panel.at(block, schedule.offset[s] + p - a.chunk_row);
    for (Index u = 0; u < kBlock; u += V::lanes) {
      V of_tanh = V::load(dscore + u), sum(Real(0));
      if constexpr (kPowers)
        add_by_powers(p, V::load(query_powers(p) + unit + u), powers_of(memory) + unit + u, dkeys + u, sum, of_tanh);
      else
        add_by_tanh(p, V::load(query_at(p) + unit + u), keys_of(memory) + unit + u, dkeys + u, sum, of_tanh);
      (sum * V::load(a.weight_score + unit + u)).store(dquery + u);
      of_tanh.store(dscore + u);
    }
  }

  // A vector of a query: to dkeys and their sum de u, to of_tanh de tanh.
  FUSEDRNN_INLINE void add_by_tanh(Index p, V query, const Real* keys, Real* dkeys, V& sum, V& of_tanh) const {
    const Real* gradient = scores_at(p);
    for (Index j = 0; j < a.memory.count(memory_of(p)); ++j) {
      const V squashed = tanh(query + V::load(keys + j * width)), factor(gradient[j]);
      const V part = factor * fma(-squashed, squashed, V(Real(1)));
      of_tanh = fma(factor, squashed, of_tanh);
      sum += part;
      (V::load(dkeys + j * width) + part).store(dkeys + j * width);
    }
  }
  FUSEDRNN_INLINE void add_by_powers(Index p, V query, const Real* powers, Real* dkeys, V& sum, V& of_tanh) const {
    const Real* gradient = scores_at(p);
    const Index count = a.memory.count(memory_of(p));
    const V one(Real(1));
    V total(Real(0)), of_r(Real(0));
    const auto add = [&](Index j, V power, V r) {
      const V factor(Real(4) * gradient[j]), share = factor * r, part = share * (power * r);
      of_r += share;
      total += factor;
      sum += part;
      (V::load(dkeys + j * width) + part).store(dkeys + j * width);
    };
    Index j = 0;
    for (; j + 2 <= count; j += 2) {
      const V first = V::load(powers + j * width) * query, second = V::load(powers + (j + 1) * width) * query;
      const V one_first = first + one, one_second = second + one, inverse = one / (one_first * one_second);
      add(j, first, inverse * one_second);
      add(j + 1, second, inverse * one_first);
    }
    if (j < count) {
      const V last = V::load(powers + j * width) * query;
      add(j, last, one / (last + one));
    }
    // de (1 - 2 r), of what is here four times de and de r.
    of_tanh += fma(V(Real(-0.5)), of_r, V(Real(0.25)) * total);
  }

  // dh += dquery . weight_query, for this thread's units.
  void query_gradient(Index s, Index end) {
    for (Index j = a.dh_blocks.first; j < a.dh_blocks.last; j += kRunBlocks) {
      const Index count = smaller(kRunBlocks, a.dh_blocks.last - j);
      for (Index p = own_rows.first; p < end;) {
        const int rows = tile_rows<Tile>(end - p);
        Real* out[kRunBlocks];
        for (Index i = 0; i < count; ++i) out[i] = a.dh.at(p) + (j + i) * kBlock;
        for (Index k = 0; k < width; k += Tile::KC) {
          typename Tile::Product product;
          product.length = smaller(Tile::KC, width - k);
          product.right = a.packed_query_backward + (j * width + k) * kBlock;
          product.right_block = width * kBlock;
          product.initial = product.out = out;
          product.initial_row = product.out_row = a.dh.row;
          const Real* first = a.dquery_panel.at(k / kBlock, schedule.offset[s] + p - a.chunk_row);
          Tile::run(rows, RunRows<Real>{first, a.dquery_panel.block_stride()}, product, count);
        }
        if (w.skip(rows * count * width)) return;
        p += rows;
      }
    }
  }

  // A chunk's share of the gradient of weight_query, its rows shared among all threads.
  void query_weight_gradient() {
    const Range mine = part_of(width / kBlock, w.thread, w.threads());
    const Index columns = a.query_size;
    for (Index j = mine.first; j < mine.last; ++j) {
      Real* to = a.dweight_query + j * kBlock * columns;
      if (w.skip(a.chunk_rows * columns)) return;
      if (a.chunk_rows <= kFewRows) {
        Gradients::accumulate_few(a.dquery_panel, j, units_in(j), a.h_panel, a.chunk_rows, columns, a.adding, to);
        continue;
      }
      for (Index i = 0; i < blocks_of(columns); i += kRunBlocks)
        Gradients::accumulate_outer(a.dquery_panel, j, units_in(j), {a.h_panel, i}, {0, a.chunk_rows}, columns,
                                    a.adding, to);
    }
  }

  // Of each location of this thread, what comes through the contexts of all steps is added to what comes through its
  // key.
  void memory_gradient() {
    const Range mine = part_of(a.locations, w.thread, w.threads());
    const Index features = a.memory.features;
    for (Index p = 0; p < schedule.rows; ++p) {
      const Index b = schedule.row[p], steps = schedule.length[p], count = a.memory.count(b);
      if (w.skip((mine.last - mine.first) * steps * features / kBlock)) return;
      for (Index j = mine.first; j < mine.last; ++j) {
        Real* to = a.dmemory.at(j, b);
        if (j >= count)
          for (Index c = 0; c < features; ++c) to[c] = Real(0);
        else
          value_gradient(b, j, steps, a.dvalues + (a.memory.first[b] + j) * features, to);
      }
    }
  }
  void value_gradient(Index b, Index j, Index steps, const Real* through_key, Real* to) {
    if (!a.total.data && !a.dcontext.data) steps = 0;
    const auto share = [&](Index s) {
      if (a.kind == Attention::soft) return a.attention.at(s, b)[j];
      return *a.location.at(s, b) == j ? Real(1) : Real(0);
    };
    weighted_rows<Real>(
        steps, share, [&](Index s) { return context_gradient(s, b); }, {0, a.memory.features}, through_key, to);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
