// The registry of a build for tests: one cell of no use but to need all that traits can say of a cell whose steps have
// one product. It has two states, and a parameter of its own that is no peephole:
//   f = sigmoid(z_f + scale tanh(c_{t-1})), g = tanh(z_g), c_t = f c_{t-1} + (1 - f) g, h_t = tanh(c_t)
#pragma once
#include "cells/clip.h"

namespace fusedrnn {
namespace {

struct Toy {
  static constexpr int F = 0, G = 1;
  static constexpr CellTraits traits = {"toy", {{"f", "g"}},   {{"h", "c"}},    2, {"scale", 1},
                                        1,     {0, 2, {0, 1}}, {{0, 2, {0, 1}}}};

  static constexpr GateRange range(int slot) { return slot == F ? GateRange::sigmoid : GateRange::tanh; }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void forward(V* slot, const State<V>& previous, const V* scale, State<V>& next,
                                           const Clip& clip = {}) {
    slot[F] = sigmoid(clip.bounded(fma(scale[0], tanh(previous.c), slot[F])));
    slot[G] = tanh(clip.bounded(slot[G]));
    next.c = fma(slot[F], previous.c - slot[G], slot[G]);
    next.h = tanh(next.c);
  }

  template <class V, class Clip = Unclipped>
  FUSEDRNN_HOST_DEVICE static void backward(const V* slot, const State<V>& previous, const V& c, State<V>& grad,
                                            const V* scale, V* dslot, State<V>& dprevious, const Clip& clip = {}) {
    const V dc = grad.c = fma(grad.h, tanh_slope(tanh(c)), grad.c);
    dslot[F] = dc * (previous.c - slot[G]) * clip.sigmoid_slope(slot[F]);
    dslot[G] = dc * (V(1) - slot[F]) * clip.tanh_slope(slot[G]);
    dprevious.c = fma(dslot[F] * scale[0], tanh_slope(tanh(previous.c)), dc * slot[F]);
    dprevious.h = V(0);
  }

  template <class V>
  FUSEDRNN_HOST_DEVICE static void per_unit_gradient(const V* dslot, const V& previous_c, const V&, V* gradient) {
    gradient[0] = fma(dslot[F], tanh(previous_c), gradient[0]);
  }
};

}  // namespace
}  // namespace fusedrnn

#define FUSEDRNN_FOR_EACH_CELL(APPLY) APPLY(Toy)
