#include "cpu/layers/int8_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/isa.h"

namespace fusedrnn {
namespace {

// How far a multiple may be from an integer: what rounding to float32 leaves, and a hundredth of a per cent of a step.
constexpr float kOnGrid = 0x1p-13f;

Int8Layout layout_of(const RecurrentConfig& config, int layer) {
  return {int8_kernels().cells[config.cell].traits, config.input_of(layer), config.hidden_size};
}

// Whether every weight is an integer in [-128, 127] times the scale.
bool fits(const float* row, Index count, float scale) {
  const float inverse = 1 / scale;
  for (Index k = 0; k < count; ++k) {
    const float integer = std::nearbyint(row[k] * inverse);
    if (!(std::fabs(row[k] * inverse - integer) <= kOnGrid) || integer < -128 || integer > 127) return false;
  }
  return true;
}

float scale_of(const float* row, Index count) {
  float largest = 0;
  for (Index k = 0; k < count; ++k) largest = std::max(largest, std::fabs(row[k]));
  if (largest < 0x1p-100f) return 0;  // the inverse of a scale might be infinite
  for (int steps = 128; steps >= 1; --steps)
    if (fits(row, count, largest / static_cast<float>(steps))) return largest / static_cast<float>(steps);
  return largest / 127;
}

class Packing {
 public:
  Packing(const Int8Layout& layout, const Weights<float>& weights, unsigned char* memory)
      : layout_(layout), traits_(layout.traits), weights_(weights), memory_(memory) {}

  void run() {
    std::memset(memory_, 0, static_cast<std::size_t>(layout_.bytes()));
    for (Index unit = 0; unit < layout_.hidden_size; ++unit) {
      for (int slot = 0; slot < traits_.slots; ++slot) pack_bias(slot, unit);
      for (int row = 0; row < traits_.per_unit.rows; ++row)
        constant(layout_.per_unit_at(row), unit) = weights_.per_unit[row * layout_.hidden_size + unit];
    }
    pack_panels(
        weights_.weight_ih, layout_.input_size, traits_.input, [&](Index block) { return layout_.input_at(block); },
        [&](int slot) { return layout_.input_scale_at(slot); });
    for (int phase = 0; phase < traits_.phases; ++phase)
      pack_panels(
          weights_.weight_hh, layout_.hidden_size, traits_.recurrent[phase],
          [&](Index block) { return layout_.recurrent_at(phase, block); },
          [&](int slot) { return layout_.recurrent_scale_at(phase, slot); });
  }

 private:
  const Int8Layout& layout_;
  const CellTraits& traits_;
  const Weights<float>& weights_;
  unsigned char* const memory_;

  float& constant(Index at, Index unit) {
    return reinterpret_cast<float*>(memory_ + layout_.constants_at(unit / kBlock))[at + unit % kBlock];
  }
  // A slot's bias is the sum of the biases of the products that feed it.
  void pack_bias(int slot, Index unit) {
    const auto add = [&](const float* from, const Window& window) {
      if (from && slot >= window.first && slot < window.first + window.count)
        constant(layout_.bias_at(slot), unit) += from[window.gate[slot - window.first] * layout_.hidden_size + unit];
    };
    add(weights_.bias_ih, traits_.input);
    for (int phase = 0; phase < traits_.phases; ++phase) add(weights_.bias_hh, traits_.recurrent[phase]);
  }
  template <class PanelAt, class ScaleAt>
  void pack_panels(const float* weight, Index inner, const Window& window, const PanelAt& panel_at,
                   const ScaleAt& scale_at) {
    std::vector<std::int8_t> integers(static_cast<std::size_t>(inner));
    for (Index unit = 0; unit < layout_.hidden_size; ++unit)
      for (int slot = 0; slot < window.count; ++slot) {
        const float* row = weight + (window.gate[slot] * layout_.hidden_size + unit) * inner;
        constant(scale_at(slot), unit) = quantize_row(row, inner, integers.data());
        pack_row(integers, {nullptr, inner, window.count}, slot, unit % kBlock, memory_ + panel_at(unit / kBlock));
      }
  }
  static void pack_row(const std::vector<std::int8_t>& integers, const Int8Panel& panel, int slot, Index unit,
                       unsigned char* to) {
    for (Index first = 0; first < panel.inner; first += kInt8Part) {
      std::int32_t sum = 0;
      for (Index k = first; k < std::min(first + kInt8Part, panel.inner); ++k) {
        const std::int8_t weight = integers[static_cast<std::size_t>(k)];
        sum += weight;
        std::memcpy(to + panel.line_at(k, slot) + unit * 4 + k % 4, &weight, 1);
      }
      sum *= -128;
      std::memcpy(to + panel.part_at(first) + slot * kInt8Line + unit * 4, &sum, sizeof sum);
    }
  }
};

}  // namespace

bool all_finite(const float* values, Index count) {
  return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

float quantize_row(const float* row, Index count, std::int8_t* integers) {
  const float scale = scale_of(row, count), inverse = scale > 0 ? 1 / scale : 0;
  for (Index k = 0; k < count; ++k)
    integers[k] = static_cast<std::int8_t>(std::clamp(std::nearbyint(row[k] * inverse), -128.0f, 127.0f));
  return scale;
}

Int8Net::Int8Net(const RecurrentConfig& config) : bytes_(bytes_of(config)), memory_(bytes_) {
  const unsigned char* next = memory_.as<unsigned char>();
  for (int i = 0; i < config.layers * config.directions; ++i) {
    directions_.push_back(next);
    next += layout_of(config, i / config.directions).bytes();
  }
}

Int8Net::Int8Net(const RecurrentConfig& config, const std::vector<Weights<float>>& weights) : Int8Net(config) {
  for (std::size_t i = 0; i < weights.size(); ++i)
    Packing(layout_of(config, static_cast<int>(i) / config.directions), weights[i],
            const_cast<unsigned char*>(directions_[i]))
        .run();
}

Int8Net::Int8Net(const RecurrentConfig& config, const void* memory) : Int8Net(config) {
  std::memcpy(memory_.data(), memory, bytes_);
}

std::size_t Int8Net::bytes_of(const RecurrentConfig& config) {
  Index bytes = 0;
  for (int layer = 0; layer < config.layers; ++layer) bytes += config.directions * layout_of(config, layer).bytes();
  return static_cast<std::size_t>(bytes);
}

void Int8Workspace::allocate(const Int8Layout& layout, Index input_rows, Index rows, int threads) {
  groups_ = Int8Direction::groups_for(layout.input_size, layout.hidden_size, input_rows, rows);
  threads_ = threads;
  left_ = Buffer(static_cast<std::size_t>(groups_ * threads) * sizeof(std::uint64_t));
  sums_ =
      Buffer(static_cast<std::size_t>(input_rows * layout.traits.slots * padded(layout.hidden_size)) * sizeof(float));
  if (layout.traits.phases == 2)
    kept_ = Buffer(static_cast<std::size_t>(rows * layout.traits.slots * padded(layout.hidden_size)) * sizeof(float));
}

}  // namespace fusedrnn
