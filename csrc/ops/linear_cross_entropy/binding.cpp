// linear_cross_entropy: array -> view -> check -> allocate -> release the GIL -> call.
#include "ops/linear/binding.h"

#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "bindings/register.h"
#include "ops/linear/plan.h"
#include "ops/linear_cross_entropy/arguments.h"

namespace fusedrnn {
namespace {

enum class Reduction { mean, sum, none };

struct LinearCrossEntropyTape {
  LinearInputs inputs;
  py::array_t<std::int64_t> targets;  // negative where ignored
  py::array normalizers;  // (2, rows): the largest logit, and the log of the sum of exponentials relative to it
  Reduction reduction;
  Index counted;             // targets that are not ignored
  std::vector<Index> outer;  // shape of the targets
};

Reduction reduction_of(const std::string& name) {
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  if (name == "none") return Reduction::none;
  throw py::value_error("reduction must be 'mean', 'sum' or 'none', not '" + name + "'");
}

// A copy of the targets in which every ignored one is -1.
py::array_t<std::int64_t> targets_of(py::handle object, const LinearCrossEntropyTape& tape, std::int64_t ignore_index) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error("targets must be an array of integers, not " + type_name(object));
  const py::array given = py::reinterpret_borrow<py::array>(object);
  require_unmasked(given, "targets");
  if (given.dtype().kind() != 'i' && given.dtype().kind() != 'u')
    throw py::type_error("targets must be an array of integers, not of " + py::str(given.dtype()).cast<std::string>());
  require_shape(given, "targets", Shape(tape.outer.begin(), tape.outer.end()));
  const Index classes = tape.inputs.weight.shape(0);
  const py::array_t<std::int64_t> wide(given.attr("astype")("int64"));
  py::array_t<std::int64_t> targets(given.size());
  const py::array_t<std::int64_t> flat(wide.attr("reshape")(-1));
  const bool unsigned_wide = given.dtype().kind() == 'u' && given.itemsize() == 8;
  for (Index n = 0; n < flat.size(); ++n) {
    const std::int64_t target = flat.data()[n];
    const bool ignored = target == ignore_index && !(unsigned_wide && target < 0);
    if (!ignored && (target < 0 || target >= classes))
      throw py::value_error("targets must lie in [0, " + std::to_string(classes) + ") or equal ignore_index " +
                            std::to_string(ignore_index) + ", not " + std::to_string(target));
    targets.mutable_data()[n] = ignored ? -1 : target;
  }
  return targets;
}

// The dtype of losses, and of all sums.
py::dtype sums_of(const LinearCrossEntropyTape& tape) { return accumulator_of(tape.inputs.x.dtype()); }

// The inputs as the kernels read them.
LinearInputs wide_inputs(const LinearCrossEntropyTape& tape) {
  LinearInputs wide = {widened(tape.inputs.x), widened(tape.inputs.weight), std::nullopt};
  if (tape.inputs.bias) wide.bias = widened(*tape.inputs.bias);
  return wide;
}

LinearCrossEntropyTape check(py::handle x, py::handle weight, py::handle bias, py::handle targets,
                             const std::string& reduction, std::int64_t ignore_index) {
  LinearCrossEntropyTape tape;
  tape.reduction = reduction_of(reduction);
  tape.inputs = check_linear(x, weight, bias, "V", "H", true);
  const py::array& features = tape.inputs.x;
  for (int axis = 0; axis + 1 < features.ndim(); ++axis) tape.outer.push_back(features.shape(axis));
  tape.targets = targets_of(targets, tape, ignore_index);
  tape.counted = 0;
  for (Index n = 0; n < tape.targets.size(); ++n) tape.counted += tape.targets.data()[n] >= 0;
  tape.normalizers = new_array(sums_of(tape), {2, static_cast<Index>(tape.targets.size())});
  return tape;
}

template <class Real>
LinearCrossEntropyArguments<Real> arguments_of(const LinearCrossEntropyTape& tape, const LinearInputs& inputs) {
  LinearCrossEntropyArguments<Real> a = {};
  a.rows = tape.targets.size();
  a.in_features = inputs.weight.shape(1);
  a.out_features = inputs.weight.shape(0);
  a.x = data_of<Real>(inputs.x);
  a.weight = data_of<Real>(inputs.weight);
  a.bias = inputs.bias ? data_of<Real>(*inputs.bias) : nullptr;
  a.targets = tape.targets.data();
  a.maximum = const_cast<Real*>(data_of<Real>(tape.normalizers));
  a.log_sum = a.maximum + a.rows;
  return a;
}

// A number as a NumPy scalar.
py::object scalar(const py::dtype& dtype, double value) { return dtype.attr("type")(value); }

template <class Real>
py::object forward_as(const LinearCrossEntropyTape& tape) {
  py::array losses = new_array(sums_of(tape), tape.outer);
  const LinearInputs inputs = wide_inputs(tape);
  LinearCrossEntropyArguments<Real> a = arguments_of<Real>(tape, inputs);
  a.losses = mutable_data_of<Real>(losses);
  run_without_gil([&](const Interrupt& interrupt) {
    return run_linear_forward(a, operations<Real>().linear_cross_entropy, interrupt);
  });
  if (tape.reduction == Reduction::none) return py::object(std::move(losses));
  double sum = 0;
  for (Index n = 0; n < a.rows; ++n) sum += static_cast<double>(a.losses[n]);
  return scalar(sums_of(tape), tape.reduction == Reduction::sum ? sum
                               : tape.counted                   ? sum / static_cast<double>(tape.counted)
                                                                : std::numeric_limits<double>::quiet_NaN());
}

py::tuple forward(py::handle x, py::handle weight, py::handle bias, py::handle targets, const std::string& reduction,
                  std::int64_t ignore_index) {
  auto tape = std::make_unique<LinearCrossEntropyTape>(check(x, weight, bias, targets, reduction, ignore_index));
  py::object loss = sums_of(*tape).itemsize() == 4 ? forward_as<float>(*tape) : forward_as<double>(*tape);
  return py::make_tuple(std::move(loss), std::move(tape));
}

// A real number: a Python one, or a 0-d array or scalar of NumPy's.
double number_of(py::handle object, const std::string& name, const std::string& wanted) {
  py::object value = py::reinterpret_borrow<py::object>(object);
  if (py::isinstance<py::array>(object)) require_unmasked(py::reinterpret_borrow<py::array>(object), name);
  if (py::hasattr(object, "dtype") && py::hasattr(object, "ndim")) {
    const std::string kind = object.attr("dtype").attr("kind").cast<std::string>();
    if ((kind != "f" && kind != "i" && kind != "u") || object.attr("ndim").cast<int>() != 0)
      throw py::type_error(name + " must be " + wanted + ", not " + type_name(object) + " of " +
                           py::str(object.attr("dtype")).cast<std::string>());
    value = object.attr("item")();
  } else if (PyBool_Check(object.ptr()) || !(PyFloat_Check(object.ptr()) || PyIndex_Check(object.ptr()))) {
    throw py::type_error(name + " must be " + wanted + ", not " + type_name(object));
  }
  const double number = PyFloat_AsDouble(value.ptr());
  if (!PyErr_Occurred()) return number;
  PyErr_Clear();
  throw py::value_error(name + " must be within the range of a float");
}

// Gradient of every row's loss.
template <class Real>
py::array scales_of(const LinearCrossEntropyTape& tape, py::handle dloss) {
  const Index rows = tape.targets.size();
  py::array scales = new_array(sums_of(tape), {rows});
  Real* scale = mutable_data_of<Real>(scales);
  const bool each = tape.reduction == Reduction::none;
  if (each && py::isinstance<py::array>(dloss) && py::reinterpret_borrow<py::array>(dloss).ndim() > 0) {
    const py::array values = require_array(dloss, "dloss", sums_of(tape), Use::input);
    require_shape(values, "dloss", Shape(tape.outer.begin(), tape.outer.end()));
    require_contiguous(values, "dloss");
    std::copy_n(data_of<Real>(values), rows, scale);
    return scales;
  }
  const double value = number_of(dloss, "dloss", each ? "a number or an array of the targets' shape" : "a number");
  const double divisor = tape.reduction == Reduction::mean ? static_cast<double>(std::max<Index>(tape.counted, 1)) : 1;
  std::fill_n(scale, rows, static_cast<Real>(value / divisor));
  return scales;
}

template <class Real>
py::tuple backward_as(const LinearCrossEntropyTape& tape, py::handle dloss) {
  const py::array scales = scales_of<Real>(tape, dloss);
  const LinearInputs inputs = wide_inputs(tape);
  const Index classes = inputs.weight.shape(0), features = inputs.weight.shape(1);
  const bool any = tape.targets.size() > 0;
  const py::dtype sums = sums_of(tape), dtype = tape.inputs.x.dtype();
  py::array dx = new_array(sums, shape_with(inputs.x, features));
  py::array dweight = new_gradient(sums, {classes, features}, any);
  py::array dbias = new_gradient(sums, {classes}, any);
  LinearCrossEntropyArguments<Real> a = arguments_of<Real>(tape, inputs);
  a.scale = data_of<Real>(scales);
  a.dx = mutable_data_of<Real>(dx);
  a.dweight = mutable_data_of<Real>(dweight);
  a.dbias = inputs.bias ? mutable_data_of<Real>(dbias) : nullptr;
  run_without_gil([&](const Interrupt& interrupt) {
    return run_linear_backward(a, operations<Real>().linear_cross_entropy, interrupt);
  });
  return py::make_tuple(rounded(dx, dtype), rounded(dweight, dtype),
                        inputs.bias ? py::object(rounded(dbias, dtype)) : py::none());
}

py::tuple backward(const LinearCrossEntropyTape& tape, py::handle dloss) {
  return sums_of(tape).itemsize() == 4 ? backward_as<float>(tape, dloss) : backward_as<double>(tape, dloss);
}

}  // namespace

void register_linear_cross_entropy(py::module_& operation) {
  operation.attr("Tape") =
      py::class_<LinearCrossEntropyTape>(operation, "LinearCrossEntropyTape",
                                         "What the backward pass needs; it refers to x, weight and bias.")
          .def_property_readonly(
              "nbytes",
              [](const LinearCrossEntropyTape& tape) { return tape.targets.nbytes() + tape.normalizers.nbytes(); })
          .def_static("__new__", &only_from_forward);
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
