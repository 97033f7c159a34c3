#include "bindings/numpy/parameters.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/sentences.h"

namespace fusedrnn {
namespace {

Shape as_wanted(const std::vector<Index>& shape) { return Shape(shape.begin(), shape.end()); }

std::int64_t length_of(py::handle item, const std::string& name, Index most) {
  const py::int_ length = require_integer(item, name + " must hold integers");
  if (length < py::int_(0) || length > py::int_(most))
    throw py::value_error(name + " must lie in [0, " + std::to_string(most) + "], not " +
                          py::str(length).cast<std::string>());
  return length.cast<std::int64_t>();
}

}  // namespace

bool is_plain(py::handle object, const py::dtype& dtype, const std::vector<Index>& shape) {
  if (!is_base_array(object)) return false;
  const auto& array = *py::detail::array_proxy(object.ptr());
  constexpr int wanted = py::detail::npy_api::NPY_ARRAY_ALIGNED_ | py::array::c_style;
  return array.descr == dtype.ptr() && (array.flags & wanted) == wanted && array.nd == static_cast<int>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), array.dimensions);
}

void ParameterList::add(const std::string& name, const std::vector<Index>& shape) {
  names_.push_back(name);
  shapes_.push_back(shape);
  keys_.emplace_back(name);
}

py::list ParameterList::shapes() const {
  py::list shapes;
  for (std::size_t i = 0; i < size(); ++i) shapes.append(py::make_tuple(keys_[i], py::tuple(py::cast(shapes_[i]))));
  return shapes;
}

std::vector<py::array> ParameterList::arrays(const py::dict& mapping, const std::string& name) const {
  std::vector<py::array> arrays;
  arrays.reserve(size());
  for (std::size_t i = 0; i < size(); ++i) {
    PyObject* found = PyDict_GetItemWithError(mapping.ptr(), keys_[i].ptr());
    if (found && is_plain(found, dtype_, shapes_[i])) {
      arrays.push_back(py::reinterpret_borrow<py::array>(found));
      continue;
    }
    const std::string shown = entry(name, i);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (!found) throw py::value_error(sentence::missing(shown));
    py::array array = require_array(found, shown, dtype_);
    require_shape(array, shown, as_wanted(shapes_[i]));
    require_contiguous(array, shown);
    arrays.push_back(std::move(array));
  }
  if (mapping.size() != size()) throw_unexpected(mapping, name);
  return arrays;
}

void ParameterList::throw_unexpected(const py::dict& mapping, const std::string& name) const {
  for (const auto& item : mapping) {
    if (!py::isinstance<py::str>(item.first)) throw py::type_error(sentence::keys(name, type_name(item.first)));
    const std::string key = ascii(item.first);
    const auto known = [&](const std::string& own) { return "'" + own + "'" == key; };
    if (std::none_of(names_.begin(), names_.end(), known)) throw py::value_error(sentence::unknown(name, key));
  }
  throw py::value_error(name + " has entries that are not parameters of this object");
}

std::vector<py::array> ParameterList::gradients(py::handle given, bool written, py::dict& result) const {
  if (given.is_none()) {
    std::vector<py::array> arrays;
    for (std::size_t i = 0; i < size(); ++i) {
      arrays.push_back(new_gradient(dtype_, shapes_[i], written));
      result[keys_[i]] = arrays.back();
    }
    return arrays;
  }
  if (!py::isinstance<py::dict>(given)) throw py::type_error(sentence::gradients(type_name(given)));
  result = py::reinterpret_borrow<py::dict>(given);
  std::vector<py::array> arrays = this->arrays(result, "grads.parameters");
  for (std::size_t i = 0; i < size(); ++i) require_writable(arrays[i], entry("grads.parameters", i));
  return arrays;
}

std::vector<std::int64_t> lengths_of(py::handle object, const std::string& name, Index rows, Index most) {
  if (object.is_none()) return {};
  if (py::isinstance<py::array>(object)) {
    const auto array = py::reinterpret_borrow<py::array>(object);
    require_unmasked(array, name);
    if (array.dtype().kind() != 'i' && array.dtype().kind() != 'u')
      throw py::type_error(sentence::lengths(name, "of " + py::str(array.dtype()).cast<std::string>()));
    require_shape(array, name, {rows});
  } else if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object)) {
    throw py::type_error(sentence::lengths(name, type_name(object)));
  }
  std::vector<std::int64_t> lengths;
  for (const py::object item : py::reinterpret_borrow<py::sequence>(object))
    lengths.push_back(length_of(item, name, most));
  if (static_cast<Index>(lengths.size()) != rows)
    throw py::value_error(sentence::shape(name, describe({rows}), describe({static_cast<Index>(lengths.size())})));
  return lengths;
}

}  // namespace fusedrnn
