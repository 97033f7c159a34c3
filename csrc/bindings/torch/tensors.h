// torch's tensors, read and made without its headers: read through DLPack's exchange functions, or by attribute where
// an older torch has none.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <vector>

#include "common/arguments.h"

namespace fusedrnn {

using Shape = std::vector<Index>;

struct TensorView {
  static constexpr int kMaxDims = 3;
  char* data = nullptr;  // null: no tensor, or no elements
  int dims = 0;
  int bits = 0;  // of an element, a float in the CPU's memory, of 16 bits bfloat16; 0: something else
  std::array<Index, kMaxDims> shape{}, strides{};

  bool has_shape(const Shape& wanted) const;
  bool has_unit_stride() const;  // in the last axis
  bool is_contiguous() const;
  Index numel() const;
  Index extent() const;  // elements from the first one to behind the last one
};

class Tensors {
 public:
  // torch itself, and the capsule with the exchange functions or None.
  Tensors(pybind11::object torch, pybind11::object exchange);

  // A new tensor of the dtype of `like`, which has `bits`, contiguous, and where it lies. TypeError where a mode of
  // torch's functions makes another one.
  pybind11::object make(pybind11::handle like, int bits, const Shape& shape, TensorView& view) const;
  // A new tensor like a contiguous one, whose view is `of`.
  pybind11::object make_like(pybind11::handle like, const TensorView& of, TensorView& view) const;
  // A tensor from anywhere. False, and no Python error, unless it is of exactly torch's classes, with elements of
  // `bits` that are what its memory says, and all of this memory is there: storages can be resized under a tensor.
  bool read(pybind11::handle tensor, int bits, TensorView& view) const;

 private:
  pybind11::object tensor_, parameter_;
  pybind11::object new_empty_, empty_like_;
  pybind11::object is_neg_, storage_of_, offset_of_, nbytes_of_;  // torch's unbound methods
  void* exchange_ = nullptr;

  pybind11::object made(PyObject* tensor, int bits, const Shape& shape, TensorView& view) const;
  bool look(pybind11::handle tensor, TensorView& view) const;
  bool look_by_attribute(pybind11::handle tensor, TensorView& view) const;
  bool has_memory(pybind11::handle tensor, const TensorView& view) const;
};

}  // namespace fusedrnn
