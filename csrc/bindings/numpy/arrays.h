// NumPy arrays as views, checked and named in every error before any memory is touched.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "common/arguments.h"

namespace fusedrnn {

namespace py = pybind11;

// One wanted extent: a number, or free and described by its letter.
struct Extent {
  Index size;          // -1: any
  const char* letter;  // shown where the size is free
  Extent(Index n) : size(n), letter("") {}
  Extent(const char* name) : size(-1), letter(name) {}
};
using Shape = std::vector<Extent>;

// __new__ of a tape: pybind11 would make an object around uninitialised memory.
[[noreturn]] void only_from_forward(const py::args&, const py::kwargs&);

std::string describe(const Shape& shape);
std::string type_name(py::handle object);
// A string in ASCII and quoted: it may hold what UTF-8 cannot.
std::string ascii(py::handle string);
[[noreturn]] void wrong_shape(const std::string& name, const std::string& wanted, const py::array& array);

// The object as an integer, or a TypeError that begins with what was wanted.
py::int_ require_integer(py::handle object, const std::string& wanted);
// Whether the object is an array and of no class derived from numpy.ndarray.
bool is_base_array(py::handle object);
// The array is no numpy.ma.MaskedArray, whose mask would be ignored.
void require_unmasked(const py::array& array, const std::string& name);
// What an array is for decides what its caller can do about a dtype that is not the wanted one.
enum class Use { input, input_of_layer, other };
// The object as an array of exactly this dtype and kind, aligned, or TypeError / ValueError.
py::array require_array(py::handle object, const std::string& name, const py::dtype& dtype, Use use = Use::other);
// The object as an array of float32, float64 or, where `or_bfloat16`, that.
py::array require_floats(py::handle object, const std::string& name, bool or_bfloat16 = false);
void require_shape(const py::array& array, const std::string& name, const Shape& shape);
// Elements are next to each other along the last axis, and strides are whole elements.
void require_unit_stride(const py::array& array, const std::string& name);
void require_contiguous(const py::array& array, const std::string& name);
// The array can be written, and no two of its elements share memory.
void require_writable(const py::array& array, const std::string& name);
void require_disjoint(const py::array& a, const std::string& a_name, const py::array& b, const std::string& b_name);

// The shape of `array` with another last axis.
std::vector<Index> shape_with(const py::array& array, Index last);
// Stride of an axis in elements; 0 for an axis of one element or none, whose stride means nothing.
Index stride_of(const py::array& array, int axis);

// A new C-contiguous array on NumPy's own memory. Contents are undefined.
py::array new_small_array(const py::dtype& dtype, const Index* shape, int axes);
// A new C-contiguous array, its memory from the pool when it is large. Contents are undefined.
py::array new_array(const py::dtype& dtype, const std::vector<Index>& shape);
// Zeros, unless a kernel will write it all.
py::array new_gradient(const py::dtype& dtype, const std::vector<Index>& shape, bool written);

// Whether a dtype is ml_dtypes's bfloat16, which is none of NumPy's kinds.
bool is_bfloat16(const py::dtype& dtype);
// What an array's elements are to the engine.
enum class ElementType { float32, float64, bfloat16 };
// Of a layer: its dtype must be one of the three; ml_dtypes's of 16 bits.
ElementType element_type(const py::dtype& dtype);
// What sums and cell states of that dtype are.
py::dtype accumulator_of(const py::dtype& dtype);
// An array of bfloat16 in float32, and one of float32 rounded to bfloat16: for work that is done in float32. Any other
// array, and one that is to be of another dtype than bfloat16, itself. They are contiguous.
py::array widened(const py::array& array);
py::array rounded(const py::array& array, const py::dtype& dtype);
// float32 to bfloat16, on top of what is there where `adding`.
void round_into(const py::array& from, py::array& to, bool adding);
// work(T{}) of the type.
template <class Work>
auto with_type(ElementType type, const Work& work) {
  if (type == ElementType::float32) return work(float{});
  if (type == ElementType::float64) return work(double{});
  return work(Bfloat16{});
}

template <class Real>
const Real* data_of(const py::array& array) {
  return static_cast<const Real*>(array.data());
}
template <class Real>
Real* mutable_data_of(py::array& array) {
  return static_cast<Real*>(array.mutable_data());
}

}  // namespace fusedrnn
