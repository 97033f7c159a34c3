#include "bindings/numpy/arrays.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "bindings/gil.h"
#include "bindings/sentences.h"
#include "cpu/layers/rounding.h"
#include "cpu/runtime/pool.h"

namespace fusedrnn {
namespace {

// Below this NumPy's own allocator is as good as the pool.
constexpr std::size_t kPooledBytes = 32 << 10;

std::string shape_text(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
    text += (axis ? ", " : "") + std::to_string(array.shape(axis));
  return text + (array.ndim() == 1 ? ",)" : ")");
}

std::string dtype_text(const py::dtype& dtype) { return py::str(dtype).cast<std::string>(); }

bool is_float(const py::dtype& dtype) { return dtype.kind() == 'f' || is_bfloat16(dtype); }

std::string contiguous_copy(const std::string& name) { return "numpy.ascontiguousarray(" + name + ")"; }

bool has_flag(const py::array& array, int flag) { return (array.flags() & flag) == flag; }

// What to do about floating-point numbers of another width: nothing is converted silently.
std::string remedy(const std::string& name, const py::dtype& wanted, const py::dtype& came, Use use) {
  if (use == Use::other || !is_float(wanted) || !is_float(came)) return "";
  const bool narrow = is_bfloat16(wanted);  // NumPy knows it by its name alone
  const std::string convert =
      "; pass " + name + ".astype(" + (narrow ? "\"bfloat16\"" : "np." + dtype_text(wanted)) + ")";
  const bool plain = came.byteorder() == '=' && (came.itemsize() == 4 || came.itemsize() == 8);
  const bool known = plain || is_bfloat16(came);
  if (use != Use::input_of_layer || !known) return convert;
  return convert + ", or make the layer with dtype=\"" + dtype_text(came) + "\"";
}

}  // namespace

void only_from_forward(const py::args&, const py::kwargs&) { throw py::type_error("tapes are made by forward only"); }

std::string describe(const Shape& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    text += axis ? ", " : "";
    text += shape[axis].size < 0 ? std::string(shape[axis].letter) : std::to_string(shape[axis].size);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::string type_name(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>();
}

std::string ascii(py::handle string) {
  return py::reinterpret_steal<py::str>(PyObject_ASCII(string.ptr())).cast<std::string>();
}

void wrong_shape(const std::string& name, const std::string& wanted, const py::array& array) {
  throw py::value_error(sentence::shape(name, wanted, shape_text(array)));
}

py::int_ require_integer(py::handle object, const std::string& wanted) {
  if (PyIndex_Check(object.ptr()) && !PyBool_Check(object.ptr())) {
    if (PyObject* const index = PyNumber_Index(object.ptr())) return py::reinterpret_steal<py::int_>(index);
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();  // an array of more than one integer, say
  }
  throw py::type_error(wanted + ", not " + type_name(object));
}

bool is_base_array(py::handle object) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) ==
         reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_);
}

bool is_bfloat16(const py::dtype& dtype) {
  return dtype.itemsize() == 2 && dtype.kind() == 'V' && dtype_text(dtype) == "bfloat16";
}

ElementType element_type(const py::dtype& dtype) {
  if (dtype.itemsize() == 2) return ElementType::bfloat16;
  return dtype.itemsize() == 4 ? ElementType::float32 : ElementType::float64;
}

py::dtype accumulator_of(const py::dtype& dtype) { return dtype.itemsize() == 2 ? py::dtype::of<float>() : dtype; }

void require_unmasked(const py::array& array, const std::string& name) {
  if (is_base_array(array)) return;
  if (py::isinstance(array, py::module_::import("numpy.ma").attr("MaskedArray")))
    throw py::type_error(name + " must be an array without a mask, not " + type_name(array));
}

py::array require_array(py::handle object, const std::string& name, const py::dtype& dtype, Use use) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(name + " must be a numpy.ndarray of " + dtype_text(dtype) + ", not " + type_name(object));
  py::array array = py::reinterpret_borrow<py::array>(object);
  require_unmasked(array, name);
  if (!py::detail::npy_api::get().PyArray_EquivTypes_(array.dtype().ptr(), dtype.ptr()))
    throw py::type_error(
        sentence::dtype(name, dtype_text(dtype), dtype_text(array.dtype()), remedy(name, dtype, array.dtype(), use)));
  if (!has_flag(array, py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    throw py::value_error(name + " must be aligned to its element size; pass a copy");
  return array;
}

py::array require_floats(py::handle object, const std::string& name, bool or_bfloat16) {
  const std::string wanted = or_bfloat16 ? "float32, float64 or bfloat16" : "float32 or float64";
  if (!py::isinstance<py::array>(object))
    throw py::type_error(name + " must be a numpy.ndarray of " + wanted + ", not " + type_name(object));
  const py::dtype came = py::reinterpret_borrow<py::array>(object).dtype();
  if (or_bfloat16 && is_bfloat16(came)) return require_array(object, name, came);
  const bool is_float64 = py::isinstance<py::array_t<double>>(object);
  if (!is_float64 && !py::isinstance<py::array_t<float>>(object))
    throw py::type_error(sentence::dtype(name, wanted, dtype_text(came), ""));
  return require_array(object, name, is_float64 ? py::dtype::of<double>() : py::dtype::of<float>());
}

void require_shape(const py::array& array, const std::string& name, const Shape& shape) {
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (std::size_t axis = 0; fits && axis < shape.size(); ++axis)
    fits = shape[axis].size < 0 || shape[axis].size == array.shape(axis);
  if (!fits) wrong_shape(name, describe(shape), array);
}

std::vector<Index> shape_with(const py::array& array, Index last) {
  std::vector<Index> shape(array.shape(), array.shape() + array.ndim());
  shape.back() = last;
  return shape;
}

Index stride_of(const py::array& array, int axis) {
  return array.shape(axis) <= 1 ? 0 : array.strides(axis) / array.itemsize();
}

void require_unit_stride(const py::array& array, const std::string& name) {
  const int last = static_cast<int>(array.ndim()) - 1;
  if (last >= 0 && array.size() > 0 && array.shape(last) > 1 && array.strides(last) != array.itemsize())
    throw py::value_error(sentence::unit_stride(name, std::to_string(array.itemsize()),
                                                std::to_string(array.strides(last)), contiguous_copy(name)));
  for (int axis = 0; axis < last; ++axis)
    if (array.shape(axis) > 1 && array.strides(axis) % array.itemsize() != 0)
      throw py::value_error(sentence::whole_strides(name, contiguous_copy(name)));
}

void require_contiguous(const py::array& array, const std::string& name) {
  if (!has_flag(array, py::array::c_style)) throw py::value_error(sentence::contiguous(name, contiguous_copy(name)));
}

void require_writable(const py::array& array, const std::string& name) {
  if (!array.writeable()) throw py::value_error(sentence::writable(name));
  std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // (distance between neighbours, size)
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
    if (array.shape(axis) > 1) axes.emplace_back(std::abs(array.strides(axis)), array.shape(axis));
  std::sort(axes.begin(), axes.end());
  py::ssize_t extent = array.itemsize();
  for (const auto& [distance, size] : axes) {
    if (array.size() > 0 && distance < extent) throw py::value_error(sentence::overlapping(name));
    extent += distance * (size - 1);
  }
}

void require_disjoint(const py::array& a, const std::string& a_name, const py::array& b, const std::string& b_name) {
  const py::module_ numpy = py::module_::import("numpy");
  if (!numpy.attr("may_share_memory")(a, b).cast<bool>()) return;
  bool shared = true;  // where finding out is too hard, refuse
  try {
    shared = numpy.attr("shares_memory")(a, b, py::arg("max_work") = 100000).cast<bool>();
  } catch (py::error_already_set&) {
  }
  if (shared) throw py::value_error(sentence::shared(a_name, b_name));
}

py::array new_small_array(const py::dtype& dtype, const Index* shape, int axes) {
  // py::array's constructors would compute strides and allocate for them: as long as a small step takes.
  const py::detail::npy_api& api = py::detail::npy_api::get();
  PyObject* const array =
      api.PyArray_NewFromDescr_(api.PyArray_Type_, py::dtype(dtype).release().ptr(), axes,
                                reinterpret_cast<const Py_intptr_t*>(shape), nullptr, nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(array);
}

py::array new_array(const py::dtype& dtype, const std::vector<Index>& shape) {
  std::size_t bytes = static_cast<std::size_t>(dtype.itemsize());
  bool overflow = false;
  for (Index size : shape) overflow |= __builtin_mul_overflow(bytes, static_cast<std::size_t>(size), &bytes);
  // NumPy's own error where the size cannot be represented.
  if (overflow || bytes < kPooledBytes || bytes > static_cast<std::size_t>(PTRDIFF_MAX))
    return new_small_array(dtype, shape.data(), static_cast<int>(shape.size()));
  auto buffer = std::make_unique<Buffer>(bytes);
  void* const data = buffer->data();
  const py::capsule owner(buffer.get(), [](void* kept) { delete static_cast<Buffer*>(kept); });
  buffer.release();
  return py::array(dtype, shape, data, owner);
}

py::array new_gradient(const py::dtype& dtype, const std::vector<Index>& shape, bool written) {
  py::array array = new_array(dtype, shape);
  if (!written) std::memset(array.mutable_data(), 0, static_cast<std::size_t>(array.nbytes()));
  return array;
}

py::array widened(const py::array& array) {
  if (!is_bfloat16(array.dtype())) return array;
  py::array wide = new_array(py::dtype::of<float>(), {array.shape(), array.shape() + array.ndim()});
  const Bfloat16* const from = data_of<Bfloat16>(array);
  float* const to = mutable_data_of<float>(wide);
  const Index count = array.size();
  const GilReleased released;
  std::transform(from, from + count, to, [](Bfloat16 value) { return widen(value); });
  return wide;
}

void round_into(const py::array& from, py::array& to, bool adding) {
  const float* const sum = data_of<float>(from);
  Bfloat16* const item = mutable_data_of<Bfloat16>(to);
  const Index count = from.size();
  const GilReleased released;
  round_sums(sum, item, count, adding);
}

py::array rounded(const py::array& array, const py::dtype& dtype) {
  if (!is_bfloat16(dtype)) return array;
  py::array result = new_array(dtype, {array.shape(), array.shape() + array.ndim()});
  round_into(array, result, false);
  return result;
}

}  // namespace fusedrnn
