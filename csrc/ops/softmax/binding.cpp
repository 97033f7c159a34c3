// softmax: array -> view -> check -> allocate -> release the GIL -> call.
#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "bindings/register.h"
#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"

namespace fusedrnn {
namespace {

// Elements below which a team costs more than it saves.
constexpr double kTeamElements = 1e5;
constexpr double kCyclesOfAnElement = 2;  // about

template <class Real>
int threads_for(const SoftmaxArguments<Real>& a) {
  const double elements = static_cast<double>(a.rows) * static_cast<double>(a.columns);
  return elements < kTeamElements ? 1 : team_size(num_threads(), elements * kCyclesOfAnElement);
}

// Forward of x, or with dy backward of y.
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
  const OperationKernels<SoftmaxArguments<Real>>& softmax = operations<Real>().softmax;
  run_without_gil([&](const Interrupt& interrupt) {
    return run_operation(a, threads_for(a), interrupt, dy ? softmax.backward : softmax.forward);
  });
  return out;
}

py::array require_rows(py::handle object, const std::string& name) {
  py::array array = require_floats(object, name);
  if (array.ndim() < 1) throw py::value_error(name + " must have an axis to sum over, not shape ()");
  require_contiguous(array, name);
  return array;
}

py::array forward(py::handle object) {
  const py::array x = require_rows(object, "x");
  return x.itemsize() == 4 ? softmax_as<float>(x, nullptr) : softmax_as<double>(x, nullptr);
}

py::array backward(py::handle result, py::handle dy) {
  const py::array y = require_rows(result, "y"), gradient = require_array(dy, "dy", y.dtype(), Use::input);
  require_shape(gradient, "dy", Shape(y.shape(), y.shape() + y.ndim()));
  require_contiguous(gradient, "dy");
  return y.itemsize() == 4 ? softmax_as<float>(y, &gradient) : softmax_as<double>(y, &gradient);
}

}  // namespace

void register_softmax(py::module_& operation) {
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
