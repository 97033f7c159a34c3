#include "cpu/layers/packed.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/runtime/contention.h"

namespace fusedrnn {
namespace {

// Bytes that one thread packs sooner than a team is started.
constexpr Index kShortPacking = 128 << 10;
// Bytes that a thread packs in a cycle, about.
constexpr double kBytesOfACycle = 4;

bool holds(const Window& window, int slot) { return slot >= window.first && slot < window.first + window.count; }

// Rows of one gate of a weight matrix from the blocks of one slot, `slots` of which a unit block has.
template <class Real>
void unpack_gate(const Real* packed, Index slots, Index slot, Index inner, Index hidden, Real* weight) {
  for (Index unit = 0; unit < hidden; ++unit) {
    const Real* from = packed + ((unit / kBlock * slots + slot) * inner) * kBlock + unit % kBlock;
    for (Index k = 0; k < inner; ++k) weight[unit * inner + k] = from[k * kBlock];
  }
}

template <class Real>
void unpack_window(const Real* packed, const Window& window, Index inner, Index hidden, Real* weight) {
  for (int slot = 0; slot < window.count; ++slot)
    unpack_gate(packed, window.count, slot, inner, hidden, weight + window.gate[slot] * hidden * inner);
}

// One slot's row of `count` (biases, the per-unit parameter) in blocks of units.
template <class Real>
void unpack_row(const Real* packed, Index count, Index row, Index hidden, Real* to) {
  for (Index unit = 0; unit < hidden; ++unit) to[unit] = packed[(unit / kBlock * count + row) * kBlock + unit % kBlock];
}

template <class Real>
void unpack_direction(const CellTraits& traits, const PackedWeights<const Real>& packed, Index input_size,
                      Index hidden_size, const WeightGradients<Real>& to) {
  unpack_window(packed.weight_ih, traits.input, input_size, hidden_size, to.weight_ih);
  const Real* recurrent = packed.weight_hh;
  for (int phase = 0; phase < traits.phases; ++phase) {
    const Window& window = traits.recurrent[phase];
    unpack_window(recurrent, window, hidden_size, hidden_size, to.weight_hh);
    recurrent += blocks_of(hidden_size) * window.count * hidden_size * kBlock;
    for (int i = 0; to.bias_hh && i < window.count; ++i) {
      Real* bias = to.bias_hh + window.gate[i] * hidden_size;
      if (holds(traits.input, window.first + i))
        std::fill_n(bias, hidden_size, Real(0));
      else
        unpack_row(packed.bias, traits.slots, window.first + i, hidden_size, bias);
    }
  }
  for (int i = 0; to.bias_ih && i < traits.input.count; ++i)
    unpack_row(packed.bias, traits.slots, traits.input.first + i, hidden_size,
               to.bias_ih + traits.input.gate[i] * hidden_size);
  for (int row = 0; row < traits.per_unit.rows; ++row)
    unpack_row(packed.per_unit, traits.per_unit.rows, row, hidden_size, to.per_unit + row * hidden_size);
}

}  // namespace

Index recurrent_elements(const CellTraits& traits, Index blocks, Index inner) {
  Index elements = 0;
  for (int phase = 0; phase < traits.phases; ++phase)
    elements += blocks * traits.recurrent[phase].count * inner * kBlock;
  return elements;
}

Index packed_elements(const CellTraits& traits, Index input_size, Index hidden_size) {
  const Index blocks = blocks_of(hidden_size);
  return blocks * traits.input.count * input_size * kBlock + recurrent_elements(traits, blocks, hidden_size) +
         blocks * (traits.slots + traits.per_unit.rows) * kBlock;
}

template <class Real>
PackedWeights<Real> lay_out_packed(const CellTraits& traits, Index input_size, Index hidden_size, Real* memory) {
  const Index blocks = blocks_of(hidden_size);
  PackedWeights<Real> packed;
  packed.weight_ih = memory;
  packed.weight_hh = packed.weight_ih + blocks * traits.input.count * input_size * kBlock;
  packed.bias = packed.weight_hh + recurrent_elements(traits, blocks, hidden_size);
  packed.per_unit = packed.bias + blocks * traits.slots * kBlock;
  return packed;
}

template <class Real>
PackedNet<Real>::PackedNet(const RecurrentConfig& config, const std::vector<Weights<Real>>& weights, int threads) {
  const CellKernels<Real>& kernels = fusedrnn::kernels<Real>().cells[config.cell];
  Index elements = 0;
  for (int layer = 0; layer < config.layers; ++layer)
    elements += config.directions * packed_elements(kernels.traits, config.input_of(layer), config.hidden_size);
  const Index bytes = elements * static_cast<Index>(sizeof(Real));
  memory_ = Buffer(static_cast<std::size_t>(bytes));
  std::vector<ForwardArguments<Real>> arguments;
  Real* memory = memory_.as<Real>();
  for (int i = 0; i < config.layers * config.directions; ++i) {
    ForwardArguments<Real> a = {};
    a.input_size = config.input_of(i / config.directions);
    a.hidden_size = config.hidden_size;
    a.weights = weights[static_cast<std::size_t>(i)];
    a.fresh = lay_out_packed(kernels.traits, a.input_size, a.hidden_size, memory);
    memory += packed_elements(kernels.traits, a.input_size, a.hidden_size);
    directions_.push_back(a.fresh.read_only());
    arguments.push_back(a);
  }
  struct Context {
    const CellKernels<Real>& kernels;
    const std::vector<ForwardArguments<Real>>& arguments;
  } context = {kernels, arguments};
  const auto body = [](void* pointer, int thread, int given) {
    const Context& c = *static_cast<Context*>(pointer);
    Worker worker = {thread, {1, given}, nullptr, nullptr, nullptr, nullptr};
    for (const ForwardArguments<Real>& a : c.arguments) c.kernels.pack(a, worker);
  };
  parallel(bytes > kShortPacking ? team_size(threads, static_cast<double>(bytes) / kBytesOfACycle) : 1, body, &context);
}

template <class Real>
void PackedNet<Real>::unpack(const RecurrentConfig& config, const std::vector<WeightGradients<Real>>& to) const {
  const CellTraits& traits = fusedrnn::kernels<Real>().cells[config.cell].traits;
  for (std::size_t i = 0; i < directions_.size(); ++i)
    unpack_direction(traits, directions_[i], config.input_of(static_cast<int>(i) / config.directions),
                     config.hidden_size, to[i]);
}

template PackedWeights<float> lay_out_packed(const CellTraits&, Index, Index, float*);
template PackedWeights<double> lay_out_packed(const CellTraits&, Index, Index, double*);
template class PackedNet<float>;
template class PackedNet<double>;

}  // namespace fusedrnn
