// gaussian_read: array -> view -> check -> allocate -> release the GIL -> call.
#include "ops/gaussian_read/binding.h"

#include "bindings/register.h"

namespace fusedrnn {
namespace {

template <class Real>
GaussianReadArguments<Real> arguments_of(const py::array& image, const py::array& attention, Index count) {
  GaussianReadArguments<Real> a = {};
  set_shape<Real>(a, image, attention, image.shape(2), image.shape(3), count);
  a.image = data_of<Real>(image);
  return a;
}

template <class Real>
py::array forward_as(const py::array& image, const py::array& attention, Index count) {
  py::array patch =
      new_array(image.dtype(), {static_cast<Index>(image.shape(0)), static_cast<Index>(image.shape(1)), count, count});
  GaussianReadArguments<Real> a = arguments_of<Real>(image, attention, count);
  a.patch = mutable_data_of<Real>(patch);
  run_gaussian(a, 1, operations<Real>().gaussian_read.forward);
  return patch;
}

// The count has been checked in Python: at least 1.
py::array forward(py::handle image, py::handle attention, Index count) {
  const py::array planes = require_planes(image, "image", "H", "W");
  const py::array numbers = require_attention(attention, planes);
  return planes.itemsize() == 4 ? forward_as<float>(planes, numbers, count)
                                : forward_as<double>(planes, numbers, count);
}

template <class Real>
py::tuple backward_as(const py::array& image, const py::array& attention, Index count, const py::array& dpatch) {
  py::array dimage = new_array(image.dtype(), std::vector<Index>(image.shape(), image.shape() + 4));
  py::array dattention = new_array(image.dtype(), {static_cast<Index>(image.shape(0)), 5});
  GaussianReadArguments<Real> a = arguments_of<Real>(image, attention, count);
  a.dpatch = data_of<Real>(dpatch);
  a.dimage = mutable_data_of<Real>(dimage);
  a.dattention = mutable_data_of<Real>(dattention);
  run_gaussian(a, 3, operations<Real>().gaussian_read.backward);
  return py::make_tuple(dimage, dattention);
}

py::tuple backward(py::handle image, py::handle attention, Index count, py::handle dpatch) {
  const py::array planes = require_planes(image, "image", "H", "W");
  const py::array numbers = require_attention(attention, planes);
  const py::array gradient = require_gradient(dpatch, "dpatch", planes, count, count);
  return planes.itemsize() == 4 ? backward_as<float>(planes, numbers, count, gradient)
                                : backward_as<double>(planes, numbers, count, gradient);
}

}  // namespace

void register_gaussian_read(py::module_& operation) {
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
