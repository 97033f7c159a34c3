#include "core/dropout.h"

namespace fusedrnn {
namespace {

// The finaliser of splitmix64 (Steele, Lea & Flood 2014): every input bit reaches every output bit.
inline std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

}  // namespace

template <class Real>
void apply_dropout(const DropoutKey& key, Sequence<const Real> from, Sequence<Real> to, Index first, Index last,
                   Index rows, Index width) {
  const std::uint64_t stream = mix(mix(mix(key.seed) ^ key.call) ^ static_cast<std::uint64_t>(key.layer));
  // Dropped where a uniform 53-bit number is below p.
  const auto threshold = static_cast<std::uint64_t>(key.probability * 9007199254740992.0);
  const Real scale = key.probability < 1 ? static_cast<Real>(1 / (1 - key.probability)) : Real(0);
  for (Index t = first; t < last; ++t) {
    const std::uint64_t step = mix(stream ^ static_cast<std::uint64_t>(t));
    for (Index b = 0; b < rows; ++b) {
      const std::uint64_t row = mix(step ^ static_cast<std::uint64_t>(b));
      const Real* source = from.at(t, b);
      Real* target = to.at(t, b);
      for (Index unit = 0; unit < width; ++unit) {
        const bool kept = mix(row ^ static_cast<std::uint64_t>(unit)) >> 11 >= threshold;
        target[unit] = kept ? source[unit] * scale : Real(0);
      }
    }
  }
}

template void apply_dropout(const DropoutKey&, Sequence<const float>, Sequence<float>, Index, Index, Index, Index);
template void apply_dropout(const DropoutKey&, Sequence<const double>, Sequence<double>, Index, Index, Index, Index);

}  // namespace fusedrnn
