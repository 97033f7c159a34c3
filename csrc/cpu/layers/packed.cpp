#include "cpu/layers/packed.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/runtime/contention.h"

namespace fusedrnn {
namespace {

// Bytes that one thread packs sooner than a team is started.
constexpr std::size_t kShortPacking = 128 << 10;
// Bytes that a thread packs in a cycle, about.
constexpr double kBytesOfACycle = 4;

bool holds(const Window& window, int slot) { return slot >= window.first && slot < window.first + window.count; }

// Whether h feeds a slot.
bool holds_recurrent(const CellTraits& traits, int slot) {
  bool found = false;
  for (int phase = 0; phase < traits.phases; ++phase) found |= holds(traits.recurrent[phase], slot);
  return found;
}

// Step k of a packed block's column.
template <class T>
Index packed_place(Index k, Index column) {
  return sizeof(T) > 2 ? k * kBlock + column : k / 2 * 2 * kBlock + 2 * column + k % 2;
}

// Rows of one gate of a weight matrix from the blocks of one slot, `slots` of which a unit block has.
template <class T>
void unpack_gate(const T* packed, Index slots, Index slot, Index inner, Index hidden, T* weight) {
  for (Index unit = 0; unit < hidden; ++unit) {
    const T* from = packed + (unit / kBlock * slots + slot) * packed_inner<T>(inner) * kBlock;
    for (Index k = 0; k < inner; ++k) weight[unit * inner + k] = from[packed_place<T>(k, unit % kBlock)];
  }
}

template <class T>
void unpack_window(const T* packed, const Window& window, Index inner, Index hidden, T* weight) {
  for (int slot = 0; slot < window.count; ++slot)
    unpack_gate(packed, window.count, slot, inner, hidden, weight + window.gate[slot] * hidden * inner);
}

// The two of T whose sum a packed bias is. It is one of two numbers of T, so what rounding it to T takes away is a
// number of T as well; where T is its own accumulator that is 0.
template <class T>
void split_sum(Accumulator<T> sum, T& first, T& second) {
  first = narrow<T>(sum);
  const Accumulator<T> rest = sum - widen(first);
  second = narrow<T>(rest - rest == 0 ? rest : 0);  // of an infinite sum there is no rest
}

// Such pairs from one slot's row.
template <class T>
void unpack_sums(const Accumulator<T>* packed, Index count, Index row, Index hidden, T* first, T* second) {
  for (Index unit = 0; unit < hidden; ++unit)
    split_sum(packed[(unit / kBlock * count + row) * kBlock + unit % kBlock], first[unit], second[unit]);
}

// One slot's row of `count` (biases, the per-unit parameter) in blocks of units.
template <class T>
void unpack_row(const Accumulator<T>* packed, Index count, Index row, Index hidden, T* to) {
  for (Index unit = 0; unit < hidden; ++unit)
    to[unit] = narrow<T>(packed[(unit / kBlock * count + row) * kBlock + unit % kBlock]);
}

template <class T>
void unpack_direction(const CellTraits& traits, const Packed<T>& packed, Index input_size, Index hidden_size,
                      const ParameterArrays<T>& to) {
  unpack_window(packed.weight_ih, traits.input, input_size, hidden_size, to.weight_ih);
  const T* recurrent = packed.weight_hh;
  for (int phase = 0; phase < traits.phases; ++phase) {
    const Window& window = traits.recurrent[phase];
    unpack_window(recurrent, window, hidden_size, hidden_size, to.weight_hh);
    recurrent += blocks_of(hidden_size) * window.count * packed_inner<T>(hidden_size) * kBlock;
    for (int i = 0; to.bias_hh && i < window.count; ++i)
      if (!holds(traits.input, window.first + i))
        unpack_row(packed.bias, traits.slots, window.first + i, hidden_size, to.bias_hh + window.gate[i] * hidden_size);
  }
  for (int i = 0; to.bias_ih && i < traits.input.count; ++i) {
    const Index gate = traits.input.gate[i] * hidden_size;
    if (holds_recurrent(traits, traits.input.first + i))
      unpack_sums(packed.bias, traits.slots, traits.input.first + i, hidden_size, to.bias_ih + gate, to.bias_hh + gate);
    else
      unpack_row(packed.bias, traits.slots, traits.input.first + i, hidden_size, to.bias_ih + gate);
  }
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

template <class T>
std::size_t packed_bytes(const CellTraits& traits, Index input_size, Index hidden_size) {
  const Index blocks = blocks_of(hidden_size);
  const Index weights = blocks * traits.input.count * packed_inner<T>(input_size) * kBlock +
                        recurrent_elements(traits, blocks, packed_inner<T>(hidden_size));
  const Index sums = blocks * (traits.slots + traits.per_unit.rows) * kBlock;
  return static_cast<std::size_t>(weights) * sizeof(T) + static_cast<std::size_t>(sums) * sizeof(Accumulator<T>);
}

template <class T>
PackedWeights<T, Accumulator<T>> lay_out_packed(const CellTraits& traits, Index input_size, Index hidden_size,
                                                char* memory) {
  const Index blocks = blocks_of(hidden_size);
  PackedWeights<T, Accumulator<T>> packed;
  packed.weight_ih = reinterpret_cast<T*>(memory);
  packed.weight_hh = packed.weight_ih + blocks * traits.input.count * packed_inner<T>(input_size) * kBlock;
  packed.bias = reinterpret_cast<Accumulator<T>*>(packed.weight_hh +
                                                  recurrent_elements(traits, blocks, packed_inner<T>(hidden_size)));
  packed.per_unit = packed.bias + blocks * traits.slots * kBlock;
  return packed;
}

template <class T>
PackedNet<T>::PackedNet(const RecurrentConfig& config, const std::vector<Weights<T>>& weights, int threads) {
  const CellKernels<T>& kernels = fusedrnn::kernels<T>().cells[config.cell];
  const auto bytes_of = [&](int layer) {
    return packed_bytes<T>(kernels.traits, config.input_of(layer), config.hidden_size);
  };
  std::size_t bytes = 0;
  for (int layer = 0; layer < config.layers; ++layer)
    bytes += static_cast<std::size_t>(config.directions) * bytes_of(layer);
  memory_ = Buffer(bytes);
  std::vector<ForwardArguments<T>> arguments;
  char* memory = memory_.as<char>();
  for (int i = 0; i < config.layers * config.directions; ++i) {
    ForwardArguments<T> a = {};
    a.input_size = config.input_of(i / config.directions);
    a.hidden_size = config.hidden_size;
    a.weights = weights[static_cast<std::size_t>(i)];
    a.fresh = lay_out_packed<T>(kernels.traits, a.input_size, a.hidden_size, memory);
    memory += bytes_of(i / config.directions);
    directions_.push_back(a.fresh.read_only());
    arguments.push_back(a);
  }
  if (bytes <= kShortPacking)
    threads = 1;
  else
    threads = team_size(threads, static_cast<double>(bytes) / kBytesOfACycle);
  parallel(threads, [&](int thread, int given) {
    Worker worker = {thread, {1, given}, nullptr, nullptr, nullptr, nullptr};
    for (const ForwardArguments<T>& a : arguments) kernels.pack(a, worker);
  });
}

template <class T>
void PackedNet<T>::unpack(const RecurrentConfig& config, const std::vector<ParameterArrays<T>>& to) const {
  const CellTraits& traits = fusedrnn::kernels<T>().cells[config.cell].traits;
  for (std::size_t i = 0; i < directions_.size(); ++i)
    unpack_direction(traits, directions_[i], config.input_of(static_cast<int>(i) / config.directions),
                     config.hidden_size, to[i]);
}

#define FUSEDRNN_INSTANTIATE(T)                                          \
  template std::size_t packed_bytes<T>(const CellTraits&, Index, Index); \
  template PackedWeights<T, Accumulator<T>> lay_out_packed<T>(const CellTraits&, Index, Index, char*);
FUSEDRNN_INSTANTIATE(float)
FUSEDRNN_INSTANTIATE(double)
FUSEDRNN_INSTANTIATE(Bfloat16)
#undef FUSEDRNN_INSTANTIATE
template class PackedNet<float>;
template class PackedNet<double>;
template class PackedNet<Bfloat16>;

}  // namespace fusedrnn
