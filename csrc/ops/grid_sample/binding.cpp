// grid_sample: array -> view -> check -> allocate -> release the GIL -> call.
#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "bindings/register.h"
#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"

namespace fusedrnn {
namespace {

// Points of channels below which a team costs more than it saves.
constexpr double kTeamPoints = 2e4;
constexpr double kCyclesOfAPoint = 8;  // about

struct Inputs {
  py::array input, grid;
};

// input (B, C, H, W) with at least one pixel, and grid (B, h, w, 2).
Inputs check(py::handle input, py::handle grid) {
  Inputs inputs;
  inputs.input = require_floats(input, "input");
  require_shape(inputs.input, "input", {"B", "C", "H", "W"});
  if (inputs.input.shape(2) < 1 || inputs.input.shape(3) < 1)
    wrong_shape("input", "(B, C, H, W) with H and W at least 1", inputs.input);
  // Pixels are numbered by int32 along a side where the arrays are of float32.
  for (int axis = 2; axis < 4; ++axis)
    if (inputs.input.shape(axis) >= Index(1) << 31)
      wrong_shape("input", "(B, C, H, W) with H and W below 2**31", inputs.input);
  require_contiguous(inputs.input, "input");
  inputs.grid = require_array(grid, "grid", inputs.input.dtype(), Use::input);
  require_shape(inputs.grid, "grid", {static_cast<Index>(inputs.input.shape(0)), "h", "w", 2});
  require_contiguous(inputs.grid, "grid");
  return inputs;
}

// The options have been checked in Python.
struct Options {
  Interpolation interpolation;
  Padding padding;
  bool align_corners;
  Options(const std::string& mode, const std::string& padding_mode, bool align)
      : interpolation(mode == "nearest" ? Interpolation::nearest : Interpolation::bilinear),
        padding(padding_mode == "border"       ? Padding::border
                : padding_mode == "reflection" ? Padding::reflection
                                               : Padding::zeros),
        align_corners(align) {}
};

template <class Real>
GridSampleArguments<Real> arguments_of(const Inputs& inputs, const Options& options) {
  GridSampleArguments<Real> a = {};
  a.images = inputs.input.shape(0);
  a.channels = inputs.input.shape(1);
  a.height = inputs.input.shape(2);
  a.width = inputs.input.shape(3);
  a.points = inputs.grid.shape(1) * inputs.grid.shape(2);
  a.interpolation = options.interpolation;
  a.padding = options.padding;
  a.align_corners = options.align_corners;
  a.input = data_of<Real>(inputs.input);
  a.grid = data_of<Real>(inputs.grid);
  return a;
}

template <class Real>
void run(const GridSampleArguments<Real>& a, double passes, void (*kernel)(const GridSampleArguments<Real>&, Worker&)) {
  const double points = passes * static_cast<double>(a.images) * static_cast<double>(a.points) *
                        static_cast<double>(larger(a.channels, 1));
  const int threads = points < kTeamPoints ? 1 : team_size(num_threads(), points * kCyclesOfAPoint);
  run_without_gil([&](const Interrupt& interrupt) { return run_operation(a, threads, interrupt, kernel); });
}

std::vector<Index> shape_of(const Inputs& inputs) {
  return {static_cast<Index>(inputs.input.shape(0)), static_cast<Index>(inputs.input.shape(1)),
          static_cast<Index>(inputs.grid.shape(1)), static_cast<Index>(inputs.grid.shape(2))};
}

template <class Real>
py::array forward_as(const Inputs& inputs, const Options& options) {
  py::array out = new_array(inputs.input.dtype(), shape_of(inputs));
  GridSampleArguments<Real> a = arguments_of<Real>(inputs, options);
  a.out = mutable_data_of<Real>(out);
  run(a, 1, operations<Real>().grid_sample.forward);
  return out;
}

py::array forward(py::handle input, py::handle grid, const std::string& mode, const std::string& padding_mode,
                  bool align_corners) {
  const Inputs inputs = check(input, grid);
  const Options options(mode, padding_mode, align_corners);
  return inputs.input.itemsize() == 4 ? forward_as<float>(inputs, options) : forward_as<double>(inputs, options);
}

template <class Real>
py::tuple backward_as(const Inputs& inputs, const Options& options, const py::array& dout) {
  const auto like = [](const py::array& array) {
    return new_array(array.dtype(), std::vector<Index>(array.shape(), array.shape() + array.ndim()));
  };
  py::array dinput = like(inputs.input), dgrid = like(inputs.grid);
  GridSampleArguments<Real> a = arguments_of<Real>(inputs, options);
  a.dout = data_of<Real>(dout);
  a.dinput = mutable_data_of<Real>(dinput);
  a.dgrid = mutable_data_of<Real>(dgrid);
  run(a, 2, operations<Real>().grid_sample.backward);
  return py::make_tuple(dinput, dgrid);
}

py::tuple backward(py::handle input, py::handle grid, const std::string& mode, const std::string& padding_mode,
                   bool align_corners, py::handle object) {
  const Inputs inputs = check(input, grid);
  const Options options(mode, padding_mode, align_corners);
  const py::array dout = require_array(object, "dout", inputs.input.dtype(), Use::input);
  const std::vector<Index> shape = shape_of(inputs);
  require_shape(dout, "dout", Shape(shape.begin(), shape.end()));
  require_contiguous(dout, "dout");
  return inputs.input.itemsize() == 4 ? backward_as<float>(inputs, options, dout)
                                      : backward_as<double>(inputs, options, dout);
}

}  // namespace

void register_grid_sample(py::module_& operation) {
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
