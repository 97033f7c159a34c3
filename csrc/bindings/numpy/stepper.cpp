// Steppers: array -> view -> check -> call. A step takes about a microsecond, so its arguments are accepted by a few
// comparisons; only what those do not accept goes through the general checks, which name what is wrong.
#include "bindings/numpy/stepper.h"

#include <algorithm>
#include <new>
#include <utility>

#include "bindings/numpy/states.h"
#include "bindings/register.h"

namespace fusedrnn {
namespace {

using Proxy = py::detail::PyArray_Proxy;

const Proxy& proxy(py::handle array) { return *py::detail::array_proxy(array.ptr()); }

Index row_stride(const Proxy& array, Index itemsize) {
  return array.nd == 2 && array.dimensions[0] > 1 ? array.strides[0] / itemsize : 0;
}

// Whether any byte lies within the extent of both arrays of rows.
bool may_overlap(const Proxy& a, const Proxy& b, Index itemsize) {
  const auto end_of = [itemsize](const Proxy& array, bool high) {
    const Index reach = row_stride(array, itemsize) * itemsize * (array.nd == 2 ? array.dimensions[0] - 1 : 0);
    const Index row_bytes = array.dimensions[array.nd - 1] * itemsize;
    return array.data + (high ? std::max<Index>(reach, 0) + row_bytes : std::min<Index>(reach, 0));
  };
  return end_of(a, false) < end_of(b, true) && end_of(b, false) < end_of(a, true);
}

template <class Stepper>
using TypeOf = typename std::decay_t<Stepper>::element_type::type;

}  // namespace

// Called with the GIL, first in a forked child. A thread that was in a step exists in the parent only, so nobody can
// unlock the mutex that it held.
void PyStepper::notice_fork() const {
  if (!long_ || forks_ == forks_of_process()) return;
  forks_ = forks_of_process();
  if (mutex_->try_lock()) return mutex_->unlock();
  (void)mutex_.release();  // a locked mutex must not be destroyed
  mutex_ = std::make_unique<std::mutex>();
  torn_ = true;
}

void PyStepper::require_whole() const {
  notice_fork();
  if (!torn_) return;
  PyErr_SetString(PyExc_RuntimeError,
                  "this process was forked in the middle of the stepper's step in another thread: set its state, or "
                  "call reset(), before it is used here");
  throw py::error_already_set();
}

template <class Work>
void PyStepper::exclusively(const Work& work) const {
  if (!long_) {
    std::visit(work, stepper_);
    return;
  }
  notice_fork();
  const GilReleased released;
  const std::lock_guard<std::mutex> lock(*mutex_);
  std::visit(work, stepper_);
}

bool PyStepper::is_plain(py::handle object, Index width) const {
  if (!is_base_array(object)) return false;
  const Proxy& array = proxy(object);
  if (array.descr != dtype_.ptr() || !(array.flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) return false;
  if (array.nd == 2 ? array.dimensions[0] != rows_ : array.nd != 1 || rows_ != 1) return false;
  const Index last = array.nd - 1;
  return array.dimensions[last] == width && (width == 1 || array.strides[last] == itemsize_) &&
         (last == 0 || rows_ == 1 || array.strides[0] % itemsize_ == 0);
}

Shape PyStepper::rows_shape(bool batched, Index width) const { return batched ? Shape{rows_, width} : Shape{width}; }

void PyStepper::require_rows(py::handle object, const std::string& name, bool batched, Index width) const {
  const py::array array = require_array(object, name, dtype_, name == "out" ? Use::other : Use::input_of_layer);
  require_shape(array, name, rows_shape(batched, width));
  require_unit_stride(array, name);
}

py::object PyStepper::output_of(py::handle out, py::handle x, bool batched) const {
  if (out.is_none()) {
    const Index shape[] = {rows_, hidden_};
    return batched ? new_small_array(dtype_, shape, 2) : new_small_array(dtype_, shape + 1, 1);
  }
  if (!is_plain(out, hidden_) || (proxy(out).nd == 2) != batched) require_rows(out, "out", batched, hidden_);
  constexpr int ready = py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | py::array::c_style;
  const bool apart = !may_overlap(proxy(out), proxy(x), itemsize_);
  if ((proxy(out).flags & ready) != ready || !apart) {
    const auto array = py::reinterpret_borrow<py::array>(out);
    require_writable(array, "out");
    require_disjoint(array, "out", py::reinterpret_borrow<py::array>(x), "x_t");
  }
  return py::reinterpret_borrow<py::object>(out);
}

py::object PyStepper::step(py::handle x, py::handle out) {
  require_whole();
  if (!is_plain(x, inputs_)) {
    const bool vector = rows_ == 1 && py::isinstance<py::array>(x) && proxy(x).nd == 1;
    require_rows(x, "x_t", !vector, inputs_);
  }
  py::object y = output_of(out, x, proxy(x).nd == 2);
  const Proxy &from = proxy(x), &to = proxy(y);
  const Index from_row = row_stride(from, itemsize_), to_row = row_stride(to, itemsize_);
  exclusively([&](const auto& stepper) {
    using T = TypeOf<decltype(stepper)>;
    stepper->step({reinterpret_cast<const T*>(from.data), from_row}, {reinterpret_cast<T*>(to.data), to_row},
                  num_threads());
  });
  return y;
}

py::object PyStepper::state() const {
  require_whole();
  std::vector<py::array> halves;
  States<void*> data = {};
  for (int i = 0; i < traits_.states; ++i) {
    halves.push_back(new_array(state_dtype(i), {layers_, rows_, hidden_}));
    data[i] = halves[i].mutable_data();
  }
  exclusively([&](const auto& stepper) {
    States<StateArray<void>> arrays;
    for (int i = 0; i < traits_.states; ++i) arrays[i] = {data[i], rows_ * hidden_, hidden_};
    stepper->read_state(arrays);
  });
  return joined_state(halves);
}

py::array PyStepper::state_array(py::handle object, int state) const {
  const std::string name = state_name("state", traits_, state);
  const py::dtype dtype = state_dtype(state);
  py::array array = require_array(object, name, dtype, dtype.is(dtype_) ? Use::input_of_layer : Use::input);
  require_shape(array, name, {Index(layers_), rows_, hidden_});
  require_unit_stride(array, name);
  return array;
}

std::vector<py::array> PyStepper::state_arrays(py::handle state) const {
  std::vector<py::array> arrays;
  const auto parts = split_state(state, "state", traits_);
  for (int i = 0; i < traits_.states; ++i) arrays.push_back(state_array(parts[i], i));
  return arrays;
}

void PyStepper::set_state(py::handle state) {
  const std::vector<py::array> halves = state_arrays(state);
  exclusively([&](const auto& stepper) {
    States<StateArray<const void>> arrays;
    for (std::size_t i = 0; i < halves.size(); ++i)
      arrays[i] = {halves[i].data(), stride_of(halves[i], 0), stride_of(halves[i], 1)};
    stepper->write_state(arrays);
  });
  torn_ = false;
}

void PyStepper::begin_with(py::handle state) {
  set_state(state);
  exclusively([](const auto& stepper) { stepper->keep_as_first(); });
}

Index PyStepper::row_index(py::handle item) const {
  const py::int_ index = require_integer(item, "rows must be an array of bool, an integer or several integers");
  if (index < py::int_(0) || index >= py::int_(rows_))
    throw py::value_error("rows must lie in [0, " + std::to_string(rows_) + "), not " +
                          py::str(index).cast<std::string>());
  return index.cast<Index>();
}

std::vector<Index> PyStepper::row_indices(py::handle rows) const {
  std::vector<Index> indices;
  if (rows.is_none()) {
    for (Index row = 0; row < rows_; ++row) indices.push_back(row);
    return indices;
  }
  const bool array = py::isinstance<py::array>(rows);
  if (array) {
    const auto given = py::reinterpret_borrow<py::array>(rows);
    require_unmasked(given, "rows");
    const char kind = given.dtype().kind();
    if (kind != 'b' && kind != 'i' && kind != 'u')
      throw py::type_error("rows must be an array of bool or integers, not of " +
                           py::str(given.dtype()).cast<std::string>());
    require_shape(given, "rows", kind == 'b' ? Shape{rows_} : Shape{"N"});
    if (kind == 'b') {
      for (Index row = 0; row < rows_; ++row)
        if (*static_cast<const unsigned char*>(given.data(row)) != 0) indices.push_back(row);
      return indices;
    }
  }
  if (array || py::isinstance<py::list>(rows) || py::isinstance<py::tuple>(rows)) {
    for (const py::object item : py::reinterpret_borrow<py::sequence>(rows)) indices.push_back(row_index(item));
  } else {
    indices.push_back(row_index(rows));
  }
  return indices;
}

void PyStepper::reset(py::handle rows) {
  const std::vector<Index> indices = row_indices(rows);
  if (!rows.is_none()) require_whole();
  exclusively([&](const auto& stepper) {
    for (const Index row : indices) stepper->reset(row);
  });
  torn_ = false;
}

namespace {

// __new__ of a stepper: pybind11 would make an object around uninitialised memory.
[[noreturn]] void only_from_stream(const py::args&, const py::kwargs&) {
  throw py::type_error("steppers are made by a layer's stream() only");
}

PyStepper& stepper_of(PyObject* self) {
  return *reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder().value_ptr<PyStepper>();
}

// x_t and out among the arguments of a call.
std::pair<py::handle, py::handle> step_arguments(PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  if (count > 2) throw py::type_error("step takes x_t and out, not " + std::to_string(count) + " arguments");
  py::handle given[2];
  std::copy_n(arguments, count, given);
  for (Py_ssize_t i = 0; i < (names ? PyTuple_GET_SIZE(names) : 0); ++i) {
    PyObject* const name = PyTuple_GET_ITEM(names, i);
    const int place = PyUnicode_CompareWithASCIIString(name, "out") == 0 ? 1 : 0;
    if (place == 0 && PyUnicode_CompareWithASCIIString(name, "x_t") != 0)
      throw py::type_error("step takes x_t and out, not " + ascii(name));
    if (given[place]) throw py::type_error(py::str(name).cast<std::string>() + " must be given once, not twice");
    given[place] = arguments[count + i];
  }
  if (!given[0]) throw py::type_error("x_t must be given");
  return {given[0], given[1] ? given[1] : py::handle(Py_None)};
}

// CPython's own calling convention: pybind11's allocates where an argument is named, and takes as long as a small step.
PyObject* call_step(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  try {
    const auto [x, out] = step_arguments(arguments, count, names);
    return stepper_of(self).step(x, out).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

PyMethodDef step_method = {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_step)),
                           METH_FASTCALL | METH_KEYWORDS, R"(step($self, x_t, out=None)
--

Run one step.

Parameters
----------
x_t : ndarray
    (B, I), or (I,) for a stepper of one row; of the layer's dtype, unit stride in the last axis.
out : ndarray, optional
    Array for the result, (B, H), or (H,) where x_t is (I,). It must not share memory with x_t. Nothing is allocated then.

Returns
-------
ndarray
    h of the last layer: `out`, or a fresh array.

Raises
------
TypeError, ValueError
    Where an argument is of another kind, dtype or shape; the message names it. The state stays as it was.
RuntimeError
    In a process that was forked in the middle of another thread's step, until the state is set or reset.)"};

}  // namespace

void register_stepper(py::module_& module) {
  py::class_<PyStepper> stepper(module, "Stepper",
                                "A layer run step by step, from the parameters as they were when `stream` made it.");
  stepper.def_static("__new__", &only_from_stream)
      .def_property(
          "state", &PyStepper::state, &PyStepper::set_state,
          "The state between two steps, h or (h, c) for an LSTM, each (L, B, H): reading gives a copy, writing "
          "copies.")
      .def("reset", &PyStepper::reset, py::arg("rows") = py::none(),
           R"(Set the state to what it was at first: the layer's initial state, or zero.

Parameters
----------
rows : ndarray of bool (B,), or one or several integers in [0, B), optional
    The rows of the batch whose state to set. All if None.

Raises
------
TypeError, ValueError
    Where `rows` is none of these. The state stays as it was.)");
  stepper.attr("step") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(stepper.ptr()), &step_method));
}

}  // namespace fusedrnn
