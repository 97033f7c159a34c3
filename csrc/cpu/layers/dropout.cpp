#include "cpu/layers/dropout.h"

namespace fusedrnn {

template <class Real>
void apply_dropout(const DropoutKey& key, Sequence<const Real> from, Sequence<Real> to, Index first, Index last,
                   Index rows, Index width) {
  if (rows == 0) return;  // rather than count the steps of nothing
  const std::uint64_t stream = DropoutHash::stream(key.seed, key.call, key.layer);
  const std::uint64_t threshold = DropoutHash::threshold(key.probability);
  const Real scale = static_cast<Real>(DropoutHash::scale(key.probability));
  for (Index t = first; t < last; ++t) {
    const std::uint64_t step = DropoutHash::next(stream, t);
    for (Index b = 0; b < rows; ++b) {
      const std::uint64_t row = DropoutHash::next(step, b);
      const Real* source = from.at(t, b);
      Real* target = to.at(t, b);
      for (Index unit = 0; unit < width; ++unit)
        target[unit] = DropoutHash::keeps(row, unit, threshold) ? source[unit] * scale : Real(0);
    }
  }
}

template void apply_dropout(const DropoutKey&, Sequence<const float>, Sequence<float>, Index, Index, Index, Index);
template void apply_dropout(const DropoutKey&, Sequence<const double>, Sequence<double>, Index, Index, Index, Index);

}  // namespace fusedrnn
