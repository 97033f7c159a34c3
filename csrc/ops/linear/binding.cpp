// linear and softmax: array -> view -> check -> allocate -> release the GIL -> call.
#include "ops/linear/binding.h"

#include "bindings/interrupt.h"
#include "bindings/register.h"
#include "ops/linear/arguments.h"
#include "ops/softmax/arguments.h"

namespace fusedrnn {

py::array require_floats(py::handle object, const std::string& name) {
  const bool twice = py::isinstance<py::array_t<double>>(object);
  if (py::isinstance<py::array>(object) && !twice && !py::isinstance<py::array_t<float>>(object))
    throw py::type_error(name + " must be an array of float32 or float64, not of " +
                         py::str(py::reinterpret_borrow<py::array>(object).dtype()).cast<std::string>());
  return require_array(object, name, twice ? py::dtype::of<double>() : py::dtype::of<float>());
}

LinearInputs check_linear(py::handle x, py::handle weight, py::handle bias, const char* out, const char* in) {
  LinearInputs inputs;
  inputs.x = require_floats(x, "x");
  if (inputs.x.ndim() < 1) throw py::value_error(std::string("x must have shape (..., ") + in + "), not ()");
  const Index features = inputs.x.shape(static_cast<int>(inputs.x.ndim()) - 1);
  if (features < 1)
    throw py::value_error(std::string("x must have at least one element along its last axis, ") + in + ", not 0");
  require_contiguous(inputs.x, "x");
  inputs.weight = require_array(weight, "weight", inputs.x.dtype(), Use::input);
  require_shape(inputs.weight, "weight", {out, features});
  if (inputs.weight.shape(0) < 1) throw py::value_error("weight must have at least one row, not 0");
  require_contiguous(inputs.weight, "weight");
  if (!bias.is_none()) {
    inputs.bias = require_array(bias, "bias", inputs.x.dtype(), Use::input);
    require_shape(*inputs.bias, "bias", {static_cast<Index>(inputs.weight.shape(0))});
    require_contiguous(*inputs.bias, "bias");
  }
  return inputs;
}

namespace {

// The shape of `array` with another last axis.
std::vector<Index> shape_with(const py::array& array, Index last) {
  std::vector<Index> shape(array.shape(), array.shape() + array.ndim());
  shape.back() = last;
  return shape;
}

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
py::array linear_as(const LinearInputs& inputs) {
  py::array y = new_array(inputs.x.dtype(), shape_with(inputs.x, inputs.weight.shape(0)));
  LinearArguments<Real> a = arguments_of<Real>(inputs);
  a.y = mutable_data_of<Real>(y);
  run_without_gil([&](const Interrupt& interrupt) { return run_linear_forward(a, num_threads(), interrupt); });
  return y;
}

py::array linear(py::handle x, py::handle weight, py::handle bias) {
  const LinearInputs inputs = check_linear(x, weight, bias, "O", "I");
  return inputs.x.itemsize() == 4 ? linear_as<float>(inputs) : linear_as<double>(inputs);
}

template <class Real>
py::tuple linear_backward_as(const LinearInputs& inputs, const py::array& dy) {
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
  run_without_gil([&](const Interrupt& interrupt) { return run_linear_backward(a, num_threads(), interrupt); });
  return py::make_tuple(dx, dweight, inputs.bias ? py::object(dbias) : py::none());
}

py::tuple linear_backward(py::handle x, py::handle weight, py::handle bias, py::handle dy) {
  const LinearInputs inputs = check_linear(x, weight, bias, "O", "I");
  const py::array gradient = require_array(dy, "dy", inputs.x.dtype(), Use::input);
  const std::vector<Index> shape = shape_with(inputs.x, inputs.weight.shape(0));
  require_shape(gradient, "dy", Shape(shape.begin(), shape.end()));
  require_contiguous(gradient, "dy");
  return inputs.x.itemsize() == 4 ? linear_backward_as<float>(inputs, gradient)
                                  : linear_backward_as<double>(inputs, gradient);
}

template <class Real>
py::array softmax_as(const py::array& x, const py::array* dy) {
  const Index columns = x.shape(static_cast<int>(x.ndim()) - 1);
  py::array out = new_array(x.dtype(), shape_with(x, columns));
  SoftmaxArguments<Real> a = {};
  a.rows = columns > 0 ? x.size() / columns : 0;
  a.columns = columns;
  (dy ? a.y : a.x) = data_of<Real>(x);
  a.dy = dy ? data_of<Real>(*dy) : nullptr;
  a.out = mutable_data_of<Real>(out);
  run_without_gil([&](const Interrupt& interrupt) {
    return dy ? run_softmax_backward(a, num_threads(), interrupt) : run_softmax_forward(a, num_threads(), interrupt);
  });
  return out;
}

py::array require_rows(py::handle object, const std::string& name) {
  py::array array = require_floats(object, name);
  if (array.ndim() < 1) throw py::value_error(name + " must have an axis to sum over, not shape ()");
  require_contiguous(array, name);
  return array;
}

py::array softmax(py::handle object) {
  const py::array x = require_rows(object, "x");
  return x.itemsize() == 4 ? softmax_as<float>(x, nullptr) : softmax_as<double>(x, nullptr);
}

py::array softmax_backward(py::handle result, py::handle dy) {
  const py::array y = require_rows(result, "y"), gradient = require_array(dy, "dy", y.dtype(), Use::input);
  require_shape(gradient, "dy", Shape(y.shape(), y.shape() + y.ndim()));
  require_contiguous(gradient, "dy");
  return y.itemsize() == 4 ? softmax_as<float>(y, &gradient) : softmax_as<double>(y, &gradient);
}

}  // namespace

void register_linear(py::module_& module) {
  module.def("linear", &linear);
  module.def("linear_backward", &linear_backward);
  module.def("softmax", &softmax);
  module.def("softmax_backward", &softmax_backward);
}

}  // namespace fusedrnn
