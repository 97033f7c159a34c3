#include "ops/additive_attention/run.h"

#include <algorithm>
#include <memory>

#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"
#include "ops/linear/plan.h"

namespace fusedrnn {
namespace {

// Cycles that a tanh and what is added up of it takes for a register's lanes, about.
constexpr double kCyclesOfATanh = 30;
// Below this a team costs more than it saves.
constexpr double kTeamCycles = 1e5;

template <class Real>
Buffer buffer_of(Index count) {
  return Buffer(static_cast<std::size_t>(count) * sizeof(Real));
}

// `rows` rows and zeros after them, up to a multiple of 16.
template <class Real>
Buffer padded_rows(const Real* from, Index rows, Index columns) {
  Buffer copy = buffer_of<Real>(padded(rows) * columns);
  std::copy_n(from, rows * columns, copy.as<Real>());
  std::fill_n(copy.as<Real>() + rows * columns, (padded(rows) - rows) * columns, Real(0));
  return copy;
}

// The weights of a score, and after them the same times -2; zeros after both, up to a multiple of 16.
template <class Real>
Buffer score_weights(const Real* weights, Index size) {
  const Index width = padded(size);
  Buffer copy = buffer_of<Real>(2 * width);
  Real* to = copy.as<Real>();
  std::fill_n(to, 2 * width, Real(0));
  for (Index i = 0; i < size; ++i) to[i] = weights[i], to[width + i] = Real(-2) * weights[i];
  return copy;
}

template <class Real>
void take_gradient(const Real* from, Index count, bool adding, Real* to) {
  for (Index i = 0; i < count; ++i) to[i] = adding ? to[i] + from[i] : from[i];
}

}  // namespace

template <class Real>
void AttentionSizes<Real>::count(const std::int64_t* lengths) {
  first.assign(static_cast<std::size_t>(rows) + 1, 0);
  for (Index b = 0; b < rows; ++b)
    first[static_cast<std::size_t>(b) + 1] = first[static_cast<std::size_t>(b)] + (lengths ? lengths[b] : locations);
}

template <class Real>
ProjectedMemory<Real>::ProjectedMemory(const AttentionSizes<Real>& sizes)
    : keys_(buffer_of<Real>(sizes.total() * padded(sizes.size))) {}

template <class Real>
void ProjectedMemory<Real>::stage_values(const AttentionSizes<Real>& sizes,
                                         const AttentionArrays<const Real>& weights) {
  score_ = score_weights(weights.weight_score, sizes.size);
  if (sizes.size % kBlock != 0) weight_ = padded_rows(weights.weight_memory, sizes.size, sizes.features);
  const Sequence<const Real>& memory = sizes.memory;
  const bool whole = sizes.total() == sizes.locations * sizes.rows;
  if (whole && (memory.time == sizes.features || sizes.locations == 1) &&
      (memory.row == sizes.locations * sizes.features || sizes.rows == 1)) {
    lent_ = memory.data;
    return;
  }
  values_ = buffer_of<Real>(sizes.total() * sizes.features);
  Real* to = values_.template as<Real>();
  lent_ = to;
  for (Index b = 0; b < sizes.rows; ++b)
    for (Index j = 0; j < sizes.first[static_cast<std::size_t>(b) + 1] - sizes.first[static_cast<std::size_t>(b)];
         ++j, to += sizes.features)
      std::copy_n(memory.at(j, b), sizes.features, to);
}

template <class Real>
void ProjectedMemory<Real>::drop_values() {
  lent_ = nullptr;
  values_ = Buffer();
  powers_ = Buffer();
  bounded_ = Buffer();
  weight_ = Buffer();
  score_ = Buffer();
}

template <class Real>
void ProjectedMemory<Real>::own_values(const AttentionSizes<Real>& sizes) {
  if (values_.data()) return;
  const Index count = sizes.total() * sizes.features;
  values_ = buffer_of<Real>(count);
  std::copy_n(lent_, count, values_.template as<Real>());
  lent_ = values_.template as<Real>();
}

template <class Real>
ProjectedMemory<Real> ProjectedMemory<Real>::lent_keys() const {
  ProjectedMemory<Real> memory;
  memory.keys_ = Buffer::view(keys_.data(), keys_.bytes());
  return memory;
}

template <class Real>
const Real* ProjectedMemory<Real>::weight(const AttentionArrays<const Real>& weights) const {
  return weight_.data() ? weight_.template as<const Real>() : weights.weight_memory;
}

template <class Real>
bool ProjectedMemory<Real>::project(const AttentionSizes<Real>& sizes, const AttentionArrays<const Real>& weights,
                                    const Interrupt& interrupt) {
  stage_values(sizes, weights);
  if (sizes.total() == 0) return make_powers(sizes, interrupt);
  const Buffer bias = padded_rows(weights.bias, sizes.size, 1);
  LinearArguments<Real> a = {};
  a.rows = sizes.total();
  a.in_features = sizes.features;
  a.out_features = padded(sizes.size);
  a.x = lent_;
  a.weight = weight(weights);
  a.bias = bias.as<const Real>();
  a.y = keys_.template as<Real>();
  return run_linear_forward(a, operations<Real>().linear, interrupt) && make_powers(sizes, interrupt);
}

template <class Real>
bool ProjectedMemory<Real>::stage(const AttentionSizes<Real>& sizes, const AttentionArrays<const Real>& weights,
                                  const Interrupt& interrupt) {
  stage_values(sizes, weights);
  return make_powers(sizes, interrupt);
}

template <class Real>
bool ProjectedMemory<Real>::make_powers(const AttentionSizes<Real>& sizes, const Interrupt& interrupt) {
  powers_ = buffer_of<Real>(sizes.total() * padded(sizes.size));
  bounded_ = Buffer(static_cast<std::size_t>(sizes.rows));
  return run_keys(sizes, nullptr, interrupt);
}

// The kernel's part for the keys, or for their gradients.
template <class Real>
bool ProjectedMemory<Real>::run_keys(const AttentionSizes<Real>& sizes, Real* dkeys, const Interrupt& interrupt) const {
  AdditiveAttentionArguments<Real> a = {};
  a.part = AdditiveAttentionArguments<Real>::Part::keys;
  a.memory = view(sizes);
  a.weight_score = weight_score();
  a.schedule.rows = sizes.rows;
  a.locations = sizes.locations;
  a.dkeys = dkeys;
  return run_attention(a, dkeys != nullptr, interrupt);
}

template <class Real>
AttentionMemory<Real> ProjectedMemory<Real>::view(const AttentionSizes<Real>& sizes) const {
  return {sizes.features,
          sizes.size,
          sizes.first.data(),
          lent_,
          keys_.template as<const Real>(),
          powers_.template as<Real>(),
          bounded_.template as<unsigned char>()};
}

template <class Real>
bool ProjectedMemory<Real>::differentiate(const AttentionSizes<Real>& sizes, const AttentionArrays<const Real>& weights,
                                          Real* dkeys, const AttentionArrays<Real>& gradients, bool adding,
                                          Real* dvalues, const Interrupt& interrupt) const {
  const Index width = padded(sizes.size), features = sizes.features;
  if (sizes.total() == 0) {
    if (adding) return true;
    std::fill_n(gradients.weight_memory, sizes.size * features, Real(0));
    std::fill_n(gradients.bias, sizes.size, Real(0));
    return true;
  }
  if (!run_keys(sizes, dkeys, interrupt)) return false;
  const Buffer dweight = buffer_of<Real>(width * features), dbias = buffer_of<Real>(width);
  LinearArguments<Real> a = {};
  a.rows = sizes.total();
  a.in_features = features;
  a.out_features = width;
  a.x = lent_;
  a.weight = weight(weights);
  a.dy = dkeys;
  a.dx = dvalues;
  a.dweight = dweight.as<Real>();
  a.dbias = dbias.as<Real>();
  if (!run_linear_backward(a, operations<Real>().linear, interrupt)) return false;
  parallel(1, [&](int, int) {
    take_gradient(a.dweight, sizes.size * features, adding, gradients.weight_memory);
    take_gradient(a.dbias, sizes.size, adding, gradients.bias);
  });
  return true;
}

template <class Real>
void PackedQuery<Real>::pack(AdditiveAttentionArguments<Real>& a, bool with_backward) {
  const Index width = a.memory.width();
  forward = buffer_of<Real>(width * a.query_size);
  a.packed_query = forward.template as<Real>();
  if (with_backward) {
    backward = buffer_of<Real>(padded(a.query_size) * width);
    a.packed_query_backward = backward.template as<Real>();
  }
  AdditiveAttentionArguments<Real> packing = a;
  packing.part = AdditiveAttentionArguments<Real>::Part::pack;
  Worker worker = {0, {}, nullptr, nullptr, nullptr, nullptr};
  operations<Real>().additive_attention.forward(packing, worker);
}

template <class Real>
void add_up_scores(const Real* shares, Index rows, Index size, bool adding, Real* gradient) {
  parallel(1, [&](int, int) {  // under the engine's floating-point state
    for (Index i = 0; i < size; ++i) {
      Real sum = adding ? gradient[i] : Real(0);
      for (Index b = 0; b < rows; ++b) sum += shares[b * padded(size) + i];
      gradient[i] = sum;
    }
  });
}

double attention_cycles(Index rows, Index locations, Index size, Index features, Index lanes) {
  const double each = kCyclesOfATanh * static_cast<double>(padded(size)) + static_cast<double>(features);
  return static_cast<double>(rows) * static_cast<double>(locations) * each / static_cast<double>(lanes);
}

template <class Real>
bool run_attention(const AdditiveAttentionArguments<Real>& a, bool backward, const Interrupt& interrupt) {
  const OperationKernels<AdditiveAttentionArguments<Real>>& kernels = operations<Real>().additive_attention;
  const Index steps = a.last_step - a.first_step;
  const double cycles =
      static_cast<double>(std::max<Index>(steps, 1)) *
      attention_cycles(a.schedule.rows, a.locations, a.memory.size, a.memory.features, fusedrnn::kernels<Real>().lanes);
  const int threads = cycles < kTeamCycles ? 1 : team_size(num_threads(), cycles);
  Group group;
  std::atomic<bool> stop{false};
  const std::unique_ptr<Barrier[]> row_barriers(new Barrier[static_cast<std::size_t>(threads)]);
  parallel(threads, [&](int thread, int given) {
    const int row_parts = static_cast<int>(std::clamp<Index>(a.schedule.rows, 1, given));
    const Split split = {row_parts, given / row_parts};
    if (thread >= split.threads()) return;
    Worker worker = {thread, split, &group, nullptr, thread == 0 && interrupt.asked ? &interrupt : nullptr, &stop};
    worker.row_barrier = &row_barriers[static_cast<std::size_t>(worker.row_part())];
    (backward ? kernels.backward : kernels.forward)(a, worker);
  });
  return !stop.load();
}

template struct AttentionSizes<float>;
template struct AttentionSizes<double>;
template class ProjectedMemory<float>;
template class ProjectedMemory<double>;
template struct PackedQuery<float>;
template struct PackedQuery<double>;
template void add_up_scores(const float*, Index, Index, bool, float*);
template void add_up_scores(const double*, Index, Index, bool, double*);
template bool run_attention(const AdditiveAttentionArguments<float>&, bool, const Interrupt&);
template bool run_attention(const AdditiveAttentionArguments<double>&, bool, const Interrupt&);

}  // namespace fusedrnn
