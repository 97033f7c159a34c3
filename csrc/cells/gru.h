// Gated recurrent unit (Cho et al. 2014), in both readings of its candidate n:
//   r = sigmoid(z_r), z = sigmoid(z_z),  h_t = (1 - z) n + z h_{t-1}
//   reset after the product:   n = tanh(x W_in + b_in + r (h_{t-1} W_hn + b_hn))   (torch, cuDNN, Keras v2)
//   reset before the product:  n = tanh(x W_in + b_in + (r h_{t-1}) W_hn + b_hn)   (Cho 2014)
#pragma once
#include "cells/clip.h"

namespace fusedrnn {
namespace {

template <bool ResetAfter>
struct Gru;

// h_t and the parts of its gradient that both readings share. `direct` is the part of dE/dh_{t-1} past the products.
template <class V>
FUSEDRNN_HOST_DEVICE inline V gru_blend(V n, V z, V previous_h) {
  return fma(z, previous_h - n, n);
}
template <class V, class Clip>
FUSEDRNN_HOST_DEVICE inline void gru_blend_backward(V n, V z, V previous_h, V grad, V& dn, V& dz, V& direct,
                                                    const Clip& clip) {
  dn = grad * (V(1) - z) * clip.tanh_slope(n);
  dz = grad * (previous_h - n) * clip.sigmoid_slope(z);
  direct = grad * z;
}

// Slots n r z q, where q = h_{t-1} W_hn + b_hn is a chain of its own: x feeds n r z, h feeds r z q.
template <>
struct Gru<true> {
  static constexpr int N = 0, R = 1, Z = 2, Q = 3;
  static constexpr CellTraits traits = {
      "gru", {{"r", "z", "n"}}, {{"h"}}, 4, {}, 1, {N, 3, {2, 0, 1}}, {{R, 3, {0, 1, 2}}}};
  static constexpr GateRange range(int slot) {
    return slot == N ? GateRange::tanh : slot == Q ? GateRange::any : GateRange::sigmoid;
  }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void forward(V* slot, const State<V>& previous, const V*, State<V>& next,
                                           const Clip& clip = {}) {
    slot[R] = sigmoid(clip.bounded(slot[R]));
    slot[Z] = sigmoid(clip.bounded(slot[Z]));
    slot[N] = tanh(clip.bounded(fma(slot[R], slot[Q], slot[N])));
    next.h = gru_blend(slot[N], slot[Z], previous.h);
  }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void backward(const V* slot, const State<V>& previous, const V&, const State<V>& grad,
                                            const V*, V* dslot, State<V>& dprevious, const Clip& clip = {}) {
    gru_blend_backward(slot[N], slot[Z], previous.h, grad.h, dslot[N], dslot[Z], dprevious.h, clip);
    dslot[R] = dslot[N] * slot[Q] * clip.sigmoid_slope(slot[R]);
    dslot[Q] = dslot[N] * slot[R];
  }
};

// Slots n r z, in two phases: h feeds r and z, then the operand r h_{t-1} feeds n.
template <>
struct Gru<false> {
  static constexpr int N = 0, R = 1, Z = 2;
  static constexpr CellTraits traits = {
      "gru_reset_before", {{"r", "z", "n"}}, {{"h"}}, 3, {}, 2, {N, 3, {2, 0, 1}}, {{R, 2, {0, 1}}, {N, 1, {2}}}};
  static constexpr GateRange range(int slot) { return slot == N ? GateRange::tanh : GateRange::sigmoid; }

  // After the first phase: activates its gates and gives the second phase's left operand.
  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static V operand(V* slot, const State<V>& previous, const Clip& clip = {}) {
    slot[R] = sigmoid(clip.bounded(slot[R]));
    slot[Z] = sigmoid(clip.bounded(slot[Z]));
    return recomputed_operand(slot, previous);
  }
  template <class V>
  FUSEDRNN_HOST_DEVICE static V recomputed_operand(const V* slot, const State<V>& previous) {
    return slot[R] * previous.h;
  }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void forward(V* slot, const State<V>& previous, const V*, State<V>& next,
                                           const Clip& clip = {}) {
    slot[N] = tanh(clip.bounded(slot[N]));
    next.h = gru_blend(slot[N], slot[Z], previous.h);
  }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void backward(const V* slot, const State<V>& previous, const V&, const State<V>& grad,
                                            const V*, V* dslot, State<V>& dprevious, const Clip& clip = {}) {
    gru_blend_backward(slot[N], slot[Z], previous.h, grad.h, dslot[N], dslot[Z], dprevious.h, clip);
    dslot[R] = V(0);
  }
  // Before the first phase's product: doperand is dE/d(r h_{t-1}).
  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void backward_operand(const V* slot, const State<V>& previous, const V& doperand,
                                                    V* dslot, State<V>& dprevious, const Clip& clip = {}) {
    dslot[R] = doperand * previous.h * clip.sigmoid_slope(slot[R]);
    dprevious.h = fma(doperand, slot[R], dprevious.h);
  }
};

}  // namespace
}  // namespace fusedrnn
