// What the bindings of reading and writing through a grid of Gaussians share.
#pragma once
#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"
#include "cpu/runtime/pool.h"
#include "ops/gaussian_read/arguments.h"

namespace fusedrnn {

// An array (B, C, ., .) with at least one element along its last axes.
inline py::array require_planes(py::handle object, const char* name, const char* height, const char* width) {
  const py::array array = require_floats(object, name);
  require_shape(array, name, {"B", "C", height, width});
  if (array.shape(2) < 1 || array.shape(3) < 1)
    wrong_shape(name, std::string("(B, C, ") + height + ", " + width + ") with the last two at least 1", array);
  require_contiguous(array, name);
  return array;
}

inline py::array require_attention(py::handle object, const py::array& like) {
  const py::array attention = require_array(object, "attention", like.dtype(), Use::input);
  require_shape(attention, "attention", {static_cast<Index>(like.shape(0)), 5});
  require_contiguous(attention, "attention");
  return attention;
}

inline py::array require_gradient(py::handle object, const char* name, const py::array& like, Index height,
                                  Index width) {
  const py::array gradient = require_array(object, name, like.dtype(), Use::input);
  require_shape(gradient, name, {static_cast<Index>(like.shape(0)), static_cast<Index>(like.shape(1)), height, width});
  require_contiguous(gradient, name);
  return gradient;
}

template <class Real>
void set_shape(GaussianArguments<Real>& a, const py::array& planes, const py::array& attention, Index height,
               Index width, Index count) {
  a.rows = planes.shape(0);
  a.channels = planes.shape(1);
  a.height = height;
  a.width = width;
  a.count = count;
  a.attention = data_of<Real>(attention);
}

// `passes`: products of a call, in those of the forward pass.
template <class Arguments>
void run_gaussian(Arguments a, double passes, void (*kernel)(const Arguments&, Worker&)) {
  using Real = std::remove_pointer_t<decltype(a.workspace)>;
  constexpr double kTeamWork = 2e5;    // multiply-adds below which a team costs more than it saves
  constexpr double kWorkOfACycle = 8;  // multiply-adds, about
  const double work = passes * static_cast<double>(a.rows) * static_cast<double>(a.channels) *
                      static_cast<double>(a.count) * static_cast<double>(a.width) *
                      static_cast<double>(a.height + a.count);
  const int threads = work < kTeamWork ? 1 : team_size(num_threads(), work / kWorkOfACycle);
  a.workspace_of_thread = a.workspace_size(a.height, a.width, a.count);
  const Buffer workspace(static_cast<std::size_t>(threads * a.workspace_of_thread) * sizeof(Real));
  a.workspace = workspace.template as<Real>();
  run_without_gil([&](const Interrupt& interrupt) { return run_operation(a, threads, interrupt, kernel); });
}

}  // namespace fusedrnn
