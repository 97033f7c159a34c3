// What every cell header speaks of: a value V is a SIMD vector on the CPU and a scalar on the GPU.
#pragma once
#include "cells/traits.h"

namespace fusedrnn {
namespace {

// A cell's state, or its gradient; cells with one state leave c alone.
template <class V>
struct State {
  V h, c;
};

// Derivatives in terms of the activated value.
template <class V>
FUSEDRNN_HOST_DEVICE inline V sigmoid_slope(V s) {
  return s - s * s;
}
template <class V>
FUSEDRNN_HOST_DEVICE inline V tanh_slope(V t) {
  return fma(-t, t, V(1));
}

}  // namespace
}  // namespace fusedrnn
