// What bounds the input of a gate's activation: nothing, or a clip (ONNX), which is clamp(z, -limit, limit) and has no
// gradient where it acts. A tape holds activated values only; there a clipped gate is known by its value, the
// activation of the limit.
#pragma once
#include "cells/state.h"

namespace fusedrnn {
namespace {

struct Unclipped {
  template <class V>
  FUSEDRNN_HOST_DEVICE V bounded(V z) const {
    return z;
  }
  template <class V>
  FUSEDRNN_HOST_DEVICE V sigmoid_slope(V s) const {
    return fusedrnn::sigmoid_slope(s);
  }
  template <class V>
  FUSEDRNN_HOST_DEVICE V tanh_slope(V t) const {
    return fusedrnn::tanh_slope(t);
  }
  template <class V>
  FUSEDRNN_HOST_DEVICE V relu_gradient(V h, V grad) const {
    return select(h > V(0), grad, V(0));
  }
};

template <class V>
struct Clipped {
  V limit, sigmoid_low, sigmoid_high, tanh_high;

  FUSEDRNN_HOST_DEVICE explicit Clipped(V bound)
      : limit(bound), sigmoid_low(sigmoid(-bound)), sigmoid_high(sigmoid(bound)), tanh_high(tanh(bound)) {}

  // Written so that a nan stays a nan.
  FUSEDRNN_HOST_DEVICE V bounded(V z) const { return select(z > limit, limit, select(z < -limit, -limit, z)); }
  FUSEDRNN_HOST_DEVICE V sigmoid_slope(V s) const {
    return outside(s, sigmoid_low, sigmoid_high, fusedrnn::sigmoid_slope(s));
  }
  FUSEDRNN_HOST_DEVICE V tanh_slope(V t) const { return outside(t, -tanh_high, tanh_high, fusedrnn::tanh_slope(t)); }
  FUSEDRNN_HOST_DEVICE V relu_gradient(V h, V grad) const {
    return select(h < limit, Unclipped().relu_gradient(h, grad), V(0));
  }

 private:
  // 0 where the value is none between low and high.
  FUSEDRNN_HOST_DEVICE static V outside(V value, V low, V high, V inside) {
    return select(value <= low, V(0), select(value >= high, V(0), inside));
  }
};

}  // namespace
}  // namespace fusedrnn
