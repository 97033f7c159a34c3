// Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000), with the z's affine in x_t and
// h_{t-1}:
//   i = sigmoid(z_i), f = sigmoid(z_f), g = tanh(z_g), o = sigmoid(z_o)
//   c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
// Peephole (Gers & Schmidhuber 2000): z_i += p_i c_{t-1}, z_f += p_f c_{t-1}, z_o += p_o c_t.
// Coupled (Greff et al. 2015): no i of its own, i = 1 - f.
#pragma once
#include "cells/clip.h"

namespace fusedrnn {
namespace {

template <bool Peephole, bool Coupled>
struct Lstm {
  static constexpr Names kGateNames = Coupled ? Names{{"f", "g", "o"}} : Names{{"i", "f", "g", "o"}};
  static constexpr int kGates = kGateNames.count();
  static constexpr int I = 0, F = Coupled ? 0 : 1, G = F + 1, O = F + 2;  // slots, in torch's gate order
  static constexpr int PI = 0, PF = Coupled ? 0 : 1, PO = PF + 1;         // rows of the peephole array
  static constexpr CellTraits traits = {
      Peephole ? (Coupled ? "lstm_peephole_coupled" : "lstm_peephole") : (Coupled ? "lstm_coupled" : "lstm"),
      kGateNames,
      {{"h", "c"}},
      kGates,
      {"peephole", Peephole ? kGates - 1 : 0},
      1,
      {0, kGates, {0, 1, 2, 3}},
      {{0, kGates, {0, 1, 2, 3}}}};

  static constexpr GateRange range(int slot) { return slot == G ? GateRange::tanh : GateRange::sigmoid; }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void forward(V* slot, const State<V>& previous, const V* peephole, State<V>& next,
                                           const Clip& clip = {}) {
    if constexpr (Peephole) {
      if constexpr (!Coupled) slot[I] = fma(peephole[PI], previous.c, slot[I]);
      slot[F] = fma(peephole[PF], previous.c, slot[F]);
    }
    slot[F] = sigmoid(clip.bounded(slot[F]));
    slot[G] = tanh(clip.bounded(slot[G]));
    V i;
    if constexpr (Coupled) {
      i = V(1) - slot[F];
    } else {
      slot[I] = sigmoid(clip.bounded(slot[I]));
      i = slot[I];
    }
    next.c = fma(slot[F], previous.c, i * slot[G]);
    if constexpr (Peephole) slot[O] = fma(peephole[PO], next.c, slot[O]);
    slot[O] = sigmoid(clip.bounded(slot[O]));
    next.h = slot[O] * tanh(next.c);
  }

  // grad holds dE/dh_t and the part of dE/dc_t that comes from later steps, to which that through h_t is added here; c
  // is c_t.
  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void backward(const V* slot, const State<V>& previous, const V& c, State<V>& grad,
                                            const V* peephole, V* dslot, State<V>& dprevious, const Clip& clip = {}) {
    const V squashed = tanh(c);
    dslot[O] = grad.h * squashed * clip.sigmoid_slope(slot[O]);
    V dc = fma(grad.h * slot[O], tanh_slope(squashed), grad.c);
    if constexpr (Peephole) dc = fma(dslot[O], peephole[PO], dc);
    grad.c = dc;
    V i;
    if constexpr (Coupled) {
      i = V(1) - slot[F];
      dslot[F] = dc * (previous.c - slot[G]) * clip.sigmoid_slope(slot[F]);
    } else {
      i = slot[I];
      dslot[I] = dc * slot[G] * clip.sigmoid_slope(i);
      dslot[F] = dc * previous.c * clip.sigmoid_slope(slot[F]);
    }
    dslot[G] = dc * i * clip.tanh_slope(slot[G]);
    dprevious.c = dc * slot[F];
    if constexpr (Peephole) {
      if constexpr (!Coupled) dprevious.c = fma(dslot[I], peephole[PI], dprevious.c);
      dprevious.c = fma(dslot[F], peephole[PF], dprevious.c);
    }
    dprevious.h = V(0);
  }

  // Adds one step's part of the gradient of each row of the peephole array.
  template <class V>
  FUSEDRNN_HOST_DEVICE static void per_unit_gradient(const V* dslot, const V& previous_c, const V& c, V* gradient) {
    if constexpr (Peephole) {
      if constexpr (!Coupled) gradient[PI] = fma(dslot[I], previous_c, gradient[PI]);
      gradient[PF] = fma(dslot[F], previous_c, gradient[PF]);
      gradient[PO] = fma(dslot[O], c, gradient[PO]);
    }
  }
};

}  // namespace
}  // namespace fusedrnn
