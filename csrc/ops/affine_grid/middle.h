// Where a pixel of an image lies between -1 and 1.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {

// The middle of pixel `index` of `size` where the outer edges lie at -1 and 1; with align_corners the middles of the
// outer pixels lie there. The quotient of two whole numbers is rounded once.
template <class Real>
FUSEDRNN_INLINE Real middle(Index index, Index size, bool align_corners) {
  const Index span = align_corners ? size - 1 : size;
  return span == 0 ? Real(0) : static_cast<Real>(2 * index - (size - 1)) / static_cast<Real>(span);
}

}  // namespace fusedrnn
