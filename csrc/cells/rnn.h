// Elman's network (Elman 1990): h_t = phi(x_t W_ih + b_ih + h_{t-1} W_hh + b_hh), phi = tanh or relu.
#pragma once
#include "cells/clip.h"

namespace fusedrnn {
namespace {

template <bool Relu>
struct Rnn {
  static constexpr CellTraits traits = {
      Relu ? "rnn_relu" : "rnn_tanh", {{"h"}}, {{"h"}}, 1, {}, 1, {0, 1, {0}}, {{0, 1, {0}}}};
  static constexpr GateRange range(int) { return Relu ? GateRange::any : GateRange::tanh; }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void forward(V* slot, const State<V>&, const V*, State<V>& next, const Clip& clip = {}) {
    // Written so that a nan stays a nan.
    if constexpr (Relu)
      slot[0] = select(slot[0] < V(0), V(0), clip.bounded(slot[0]));
    else
      slot[0] = tanh(clip.bounded(slot[0]));
    next.h = slot[0];
  }

  // grad holds dE/dh_t. dprevious.h is the part that does not go through W_hh: none here.
  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void backward(const V* slot, const State<V>&, const V&, const State<V>& grad, const V*,
                                            V* dslot, State<V>& dprevious, const Clip& clip = {}) {
    if constexpr (Relu)
      dslot[0] = clip.relu_gradient(slot[0], grad.h);
    else
      dslot[0] = grad.h * clip.tanh_slope(slot[0]);
    dprevious.h = V(0);
  }
};

}  // namespace
}  // namespace fusedrnn
