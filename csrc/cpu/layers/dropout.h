// Dropout between layers, on the CPU.
#pragma once
#include "common/dropout_hash.h"

namespace fusedrnn {

struct DropoutKey {
  double probability;
  std::uint64_t seed, call;
  int layer;
};

// to(t, b, unit) = from(t, b, unit) * mask(t, b, unit) / (1 - p) for the steps [first, last); may be in place.
template <class T>
void apply_dropout(const DropoutKey& key, Sequence<const T> from, Sequence<T> to, Index first, Index last, Index rows,
                   Index width);

}  // namespace fusedrnn
