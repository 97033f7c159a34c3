// Any processor: the compilers' vector types alone.
#pragma once
#include "cpu/simd/native.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
constexpr bool fma_is_fused = false;

namespace native {

using portable::choose_bits, portable::fma, portable::load_first, portable::store_first;

template <class Native>
FUSEDRNN_INLINE Native at_least(Native a, Native bound) {
  return bound > a ? bound : a;
}
template <class Native>
FUSEDRNN_INLINE Native at_most(Native a, Native bound) {
  return bound < a ? bound : a;
}

template <class Native>
FUSEDRNN_INLINE void keep_in_register(Native&) {}

}  // namespace native
}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
