// An array of a call's type or of its accumulator's: what says where something lies need not be as short as the numbers
// that lie there.
#pragma once
#include "common/arguments.h"
#include "common/number.h"

namespace fusedrnn {
namespace {

template <class T>
struct Either {
  using A = Accumulator<T>;
  void* data;
  bool wide;

  FUSEDRNN_INLINE A get(Index i) const {
    return wide ? static_cast<const A*>(data)[i] : widen(static_cast<const T*>(data)[i]);
  }
  FUSEDRNN_INLINE void set(Index i, A value) const {
    if (wide)
      static_cast<A*>(data)[i] = value;
    else
      static_cast<T*>(data)[i] = narrow<T>(value);
  }
};

}  // namespace
}  // namespace fusedrnn
