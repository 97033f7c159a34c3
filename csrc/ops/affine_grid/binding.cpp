// affine_grid: array -> view -> check -> allocate -> release the GIL -> call.
#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "bindings/register.h"
#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"
#include "cpu/runtime/pool.h"
#include "ops/affine_grid/coordinates.h"

namespace fusedrnn {
namespace {

// Points below which a team costs more than it saves.
constexpr double kTeamPoints = 5e4;
constexpr double kCyclesOfAPoint = 2;  // about

template <class Real>
void run(const AffineGridArguments<Real>& a, void (*kernel)(const AffineGridArguments<Real>&, Worker&)) {
  const double points = static_cast<double>(a.images) * static_cast<double>(a.height) * static_cast<double>(a.width);
  const int threads = points < kTeamPoints ? 1 : team_size(num_threads(), points * kCyclesOfAPoint);
  run_without_gil([&](const Interrupt& interrupt) { return run_operation(a, threads, interrupt, kernel); });
}

py::array require_theta(py::handle object) {
  const py::array theta = require_floats(object, "theta");
  require_shape(theta, "theta", {"B", 2, 3});
  require_contiguous(theta, "theta");
  return theta;
}

template <class Real>
py::array forward_as(const py::array& theta, Index height, Index width, bool align_corners) {
  py::array grid = new_array(theta.dtype(), {static_cast<Index>(theta.shape(0)), height, width, 2});
  AffineGridArguments<Real> a = {};
  a.images = theta.shape(0);
  a.height = height;
  a.width = width;
  const Coordinates<Real> coordinates(a, align_corners);
  a.theta = data_of<Real>(theta);
  a.grid = mutable_data_of<Real>(grid);
  run(a, operations<Real>().affine_grid.forward);
  return grid;
}

// Sizes have been checked in Python: at least 1 each.
py::array forward(py::handle object, Index height, Index width, bool align_corners) {
  const py::array theta = require_theta(object);
  return theta.itemsize() == 4 ? forward_as<float>(theta, height, width, align_corners)
                               : forward_as<double>(theta, height, width, align_corners);
}

template <class Real>
py::array backward_as(const py::array& dgrid, bool align_corners) {
  AffineGridArguments<Real> a = {};
  a.images = dgrid.shape(0);
  a.height = dgrid.shape(1);
  a.width = dgrid.shape(2);
  py::array dtheta = new_array(dgrid.dtype(), {a.images, 2, 3});
  const Coordinates<Real> coordinates(a, align_corners);
  const Buffer partial(static_cast<std::size_t>(a.images * a.height * 6) * sizeof(Real));
  a.dgrid = data_of<Real>(dgrid);
  a.dtheta = mutable_data_of<Real>(dtheta);
  a.partial = partial.as<Real>();
  run(a, operations<Real>().affine_grid.backward);
  return dtheta;
}

py::array backward(py::handle theta, py::handle object, Index height, Index width, bool align_corners) {
  const py::array like = require_theta(theta);
  const py::array dgrid = require_array(object, "dgrid", like.dtype(), Use::input);
  require_shape(dgrid, "dgrid", {static_cast<Index>(like.shape(0)), height, width, 2});
  require_contiguous(dgrid, "dgrid");
  return like.itemsize() == 4 ? backward_as<float>(dgrid, align_corners) : backward_as<double>(dgrid, align_corners);
}

}  // namespace

void register_affine_grid(py::module_& operation) {
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
