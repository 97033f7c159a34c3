// linear: array -> view -> check -> allocate -> release the GIL -> call.
#include "ops/linear/binding.h"

#include "bindings/interrupt.h"
#include "bindings/register.h"
#include "ops/linear/plan.h"

namespace fusedrnn {

LinearInputs check_linear(py::handle x, py::handle weight, py::handle bias, const char* out, const char* in,
                          bool or_bfloat16) {
  LinearInputs inputs;
  inputs.x = require_floats(x, "x", or_bfloat16);
  if (inputs.x.ndim() < 1) throw py::value_error(std::string("x must have shape (..., ") + in + "), not ()");
  const Index features = inputs.x.shape(static_cast<int>(inputs.x.ndim()) - 1);
  if (features < 1)
    throw py::value_error(std::string("x must have at least one element along its last axis, ") + in + ", not 0");
  require_contiguous(inputs.x, "x");
  check_linear_parameters(inputs, weight, bias, out, features);
  return inputs;
}

void check_linear_parameters(LinearInputs& inputs, py::handle weight, py::handle bias, const char* out,
                             Index features) {
  inputs.weight = require_array(weight, "weight", inputs.x.dtype(), Use::input);
  require_shape(inputs.weight, "weight", {out, features});
  if (inputs.weight.shape(0) < 1) throw py::value_error("weight must have at least one row, not 0");
  require_contiguous(inputs.weight, "weight");
  if (!bias.is_none()) {
    inputs.bias = require_array(bias, "bias", inputs.x.dtype(), Use::input);
    require_shape(*inputs.bias, "bias", {static_cast<Index>(inputs.weight.shape(0))});
    require_contiguous(*inputs.bias, "bias");
  }
}

namespace {

template <class Real>
LinearArguments<Real> arguments_of(const LinearInputs& inputs) {
  LinearArguments<Real> a = {};
  a.out_features = inputs.weight.shape(0);
  a.in_features = inputs.weight.shape(1);
  a.rows = inputs.x.size() / a.in_features;
  a.x = data_of<Real>(inputs.x);
  a.weight = data_of<Real>(inputs.weight);
  a.bias = inputs.bias ? data_of<Real>(*inputs.bias) : nullptr;
  return a;
}

template <class Real>
py::array forward_as(const LinearInputs& inputs) {
  py::array y = new_array(inputs.x.dtype(), shape_with(inputs.x, inputs.weight.shape(0)));
  LinearArguments<Real> a = arguments_of<Real>(inputs);
  a.y = mutable_data_of<Real>(y);
  run_without_gil(
      [&](const Interrupt& interrupt) { return run_linear_forward(a, operations<Real>().linear, interrupt); });
  return y;
}

py::array forward(py::handle x, py::handle weight, py::handle bias) {
  const LinearInputs inputs = check_linear(x, weight, bias, "O", "I");
  return inputs.x.itemsize() == 4 ? forward_as<float>(inputs) : forward_as<double>(inputs);
}

template <class Real>
py::tuple backward_as(const LinearInputs& inputs, const py::array& dy) {
  const Index out = inputs.weight.shape(0), in = inputs.weight.shape(1);
  const bool any = inputs.x.size() > 0;
  py::array dx = new_array(inputs.x.dtype(), shape_with(inputs.x, in));
  py::array dweight = new_gradient(inputs.x.dtype(), {out, in}, any);
  py::array dbias = new_gradient(inputs.x.dtype(), {out}, any);
  LinearArguments<Real> a = arguments_of<Real>(inputs);
  a.dy = data_of<Real>(dy);
  a.dx = mutable_data_of<Real>(dx);
  a.dweight = mutable_data_of<Real>(dweight);
  a.dbias = inputs.bias ? mutable_data_of<Real>(dbias) : nullptr;
  run_without_gil(
      [&](const Interrupt& interrupt) { return run_linear_backward(a, operations<Real>().linear, interrupt); });
  return py::make_tuple(dx, dweight, inputs.bias ? py::object(dbias) : py::none());
}

py::tuple backward(py::handle x, py::handle weight, py::handle bias, py::handle dy) {
  const LinearInputs inputs = check_linear(x, weight, bias, "O", "I");
  const py::array gradient = require_array(dy, "dy", inputs.x.dtype(), Use::input);
  const std::vector<Index> shape = shape_with(inputs.x, inputs.weight.shape(0));
  require_shape(gradient, "dy", Shape(shape.begin(), shape.end()));
  require_contiguous(gradient, "dy");
  return inputs.x.itemsize() == 4 ? backward_as<float>(inputs, gradient) : backward_as<double>(inputs, gradient);
}

}  // namespace

void register_linear(py::module_& operation) {
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
