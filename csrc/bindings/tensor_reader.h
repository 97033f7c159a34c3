// torch's tensors, read without its headers: through DLPack's exchange functions, or by attribute where an older torch
// has none.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <initializer_list>

#include "core/arguments.h"

namespace fusedrnn {

struct TensorView {
  static constexpr int kMaxDims = 3;
  char* data = nullptr;  // null: no tensor, or no elements
  int dims = 0;
  int bits = 0;  // of an element, a float in the CPU's memory; 0: something else
  std::array<Index, kMaxDims> shape{}, strides{};

  bool has_shape(std::initializer_list<Index> wanted) const;
  bool has_unit_stride() const;  // in the last axis
  bool is_contiguous() const;
  Index numel() const;
  Index extent() const;  // elements from the first one to behind the last one
};

class TensorReader {
 public:
  TensorReader(pybind11::type tensor, pybind11::type parameter, pybind11::type storage, pybind11::object exchange);

  // A tensor that was just made, not asked for more than where it lies. Throws where it has no memory of that kind.
  TensorView view(pybind11::handle tensor) const;
  // A tensor from anywhere. False, and no Python error, unless it is of exactly torch's classes, with elements of
  // `bits` that are what its memory says, and all of this memory is there: storages can be resized under a tensor.
  bool read(pybind11::handle tensor, int bits, TensorView& view) const;

 private:
  pybind11::object tensor_, parameter_;
  pybind11::object is_neg_, storage_of_, offset_of_, nbytes_of_;  // torch's unbound methods
  void* exchange_ = nullptr;

  bool look(pybind11::handle tensor, TensorView& view) const;
  bool look_by_attribute(pybind11::handle tensor, TensorView& view) const;
  bool has_memory(pybind11::handle tensor, const TensorView& view) const;
};

}  // namespace fusedrnn
