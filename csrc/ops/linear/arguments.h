// Arguments of the linear map y = x W^T + b; see kernel.h beside this for the CPU, kernel.cuh for a device.
#pragma once
#include "common/arguments.h"
#include "common/type.h"

namespace fusedrnn {

// Sizes and the caller's arrays, of the readouts that end in more as well. On a device Real is void.
template <class Real>
struct LinearArrays {
  Index rows, in_features, out_features;
  const Real* x;               // (rows, in)
  const Real* weight;          // (out, in)
  const Real* bias;            // (out,) or null
  Real *dx, *dweight, *dbias;  // backward, written where there are rows; dbias may be null

  // On a device: calls visit(name, field) for each, by the keyword with which Python sets it.
  template <class Visit>
  void each_field(const Visit& visit) {
    visit("rows", rows);
    visit("in_features", in_features);
    visit("out_features", out_features);
    visit("x", x);
    visit("weight", weight);
    visit("bias", bias);
    visit("dx", dx);
    visit("dweight", dweight);
    visit("dbias", dbias);
  }
};

// Rows of which a forward thread holds the products.
constexpr Index kForwardRows = 48;

// On the CPU.
template <class Real>
struct LinearArguments : LinearArrays<Real> {
  Real* y;                         // forward, written: (rows, out)
  const Real* dy;                  // backward: (rows, out)
  Index chunk_rows, chunk_blocks;  // products that exist at a time: chunk_rows x chunk_blocks * 16
  // Workspace; see plan.h.
  Real* packed;           // blocks(out) * in * 16
  Real* packed_bias;      // blocks(out) * 16
  Real* packed_backward;  // backward: blocks(in) * blocks(out) * 16 * 16
  Real* products;         // forward: (threads, chunk_blocks, chunk_rows, 16); backward: one for all threads
  Blocked<Real> x_panel;  // backward: chunk_rows rows of x
};

// On a device, whose arrays are of `type`. A null array is absent; backward dweight is given.
struct LinearCall : LinearArrays<void> {
  Type type;
  void* y;
  const void* dy;
  void* workspace;

  // As the arrays' own.
  template <class Visit>
  void each_field(const Visit& visit) {
    LinearArrays::each_field(visit);
    visit("dtype", type);
    visit("y", y);
    visit("dy", dy);
  }
};

}  // namespace fusedrnn
