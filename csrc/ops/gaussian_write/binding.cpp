// gaussian_write: array -> view -> check -> allocate -> release the GIL -> call.
#include "ops/gaussian_read/binding.h"

#include "bindings/register.h"
#include "ops/gaussian_write/arguments.h"

namespace fusedrnn {
namespace {

py::array require_patch(py::handle object) {
  const py::array patch = require_planes(object, "patch", "N", "N");
  if (patch.shape(2) != patch.shape(3)) wrong_shape("patch", "(B, C, N, N)", patch);
  return patch;
}

template <class Real>
GaussianWriteArguments<Real> arguments_of(const py::array& patch, const py::array& attention, Index height,
                                          Index width) {
  GaussianWriteArguments<Real> a = {};
  set_shape<Real>(a, patch, attention, height, width, patch.shape(2));
  a.patch = data_of<Real>(patch);
  return a;
}

template <class Real>
py::array forward_as(const py::array& patch, const py::array& attention, Index height, Index width) {
  py::array image =
      new_array(patch.dtype(), {static_cast<Index>(patch.shape(0)), static_cast<Index>(patch.shape(1)), height, width});
  GaussianWriteArguments<Real> a = arguments_of<Real>(patch, attention, height, width);
  a.image = mutable_data_of<Real>(image);
  run_gaussian(a, 1, operations<Real>().gaussian_write.forward);
  return image;
}

// Sizes have been checked in Python: at least 1 each.
py::array forward(py::handle object, py::handle attention, Index height, Index width) {
  const py::array patch = require_patch(object), numbers = require_attention(attention, patch);
  return patch.itemsize() == 4 ? forward_as<float>(patch, numbers, height, width)
                               : forward_as<double>(patch, numbers, height, width);
}

template <class Real>
py::tuple backward_as(const py::array& patch, const py::array& attention, const py::array& dimage) {
  py::array dpatch = new_array(patch.dtype(), std::vector<Index>(patch.shape(), patch.shape() + 4));
  py::array dattention = new_array(patch.dtype(), {static_cast<Index>(patch.shape(0)), 5});
  GaussianWriteArguments<Real> a = arguments_of<Real>(patch, attention, dimage.shape(2), dimage.shape(3));
  a.dimage = data_of<Real>(dimage);
  a.dpatch = mutable_data_of<Real>(dpatch);
  a.dattention = mutable_data_of<Real>(dattention);
  run_gaussian(a, 3, operations<Real>().gaussian_write.backward);
  return py::make_tuple(dpatch, dattention);
}

py::tuple backward(py::handle object, py::handle attention, Index height, Index width, py::handle dimage) {
  const py::array patch = require_patch(object), numbers = require_attention(attention, patch);
  const py::array gradient = require_gradient(dimage, "dimage", patch, height, width);
  return patch.itemsize() == 4 ? backward_as<float>(patch, numbers, gradient)
                               : backward_as<double>(patch, numbers, gradient);
}

}  // namespace

void register_gaussian_write(py::module_& operation) {
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
