#include "cpu/layers/dropout.h"

namespace fusedrnn {

template <class T>
void apply_dropout(const DropoutKey& key, Sequence<const T> from, Sequence<T> to, Index first, Index last, Index rows,
                   Index width) {
  if (rows == 0) return;  // rather than count the steps of nothing
  const std::uint64_t stream = DropoutHash::stream(key.seed, key.call, key.layer);
  const std::uint64_t threshold = DropoutHash::threshold(key.probability);
  const auto scale = static_cast<Accumulator<T>>(DropoutHash::scale(key.probability));
  for (Index t = first; t < last; ++t) {
    const std::uint64_t step = DropoutHash::next(stream, t);
    for (Index b = 0; b < rows; ++b) {
      const std::uint64_t row = DropoutHash::next(step, b);
      const T* source = from.at(t, b);
      T* target = to.at(t, b);
      for (Index unit = 0; unit < width; ++unit)
        target[unit] = DropoutHash::keeps(row, unit, threshold) ? narrow<T>(widen(source[unit]) * scale) : T{};
    }
  }
}

template void apply_dropout(const DropoutKey&, Sequence<const float>, Sequence<float>, Index, Index, Index, Index);
template void apply_dropout(const DropoutKey&, Sequence<const double>, Sequence<double>, Index, Index, Index, Index);
template void apply_dropout(const DropoutKey&, Sequence<const Bfloat16>, Sequence<Bfloat16>, Index, Index, Index,
                            Index);

}  // namespace fusedrnn
