// The parameters of an object as a dict of arrays, or their gradients: checked against names and shapes.
#pragma once
#include <string>
#include <vector>

#include "bindings/numpy/arrays.h"

namespace fusedrnn {

// Whether an array is aligned, contiguous, and of this dtype and shape: what the checks after it would find, without a
// text for them. What is not may still be all right.
bool is_plain(py::handle object, const py::dtype& dtype, const std::vector<Index>& shape);

class ParameterList {
 public:
  ParameterList() = default;
  explicit ParameterList(const py::dtype& dtype) : dtype_(dtype) {}
  void add(const std::string& name, const std::vector<Index>& shape);

  std::size_t size() const { return names_.size(); }
  // [(name, shape), ...]
  py::list shapes() const;
  // What errors call the entry of a mapping.
  std::string entry(const std::string& mapping, std::size_t i) const { return mapping + "['" + names_[i] + "']"; }
  const py::str& key(std::size_t i) const { return keys_[i]; }
  const std::vector<Index>& shape(std::size_t i) const { return shapes_[i]; }

  // The mapping's arrays in order, checked.
  std::vector<py::array> arrays(const py::dict& mapping, const std::string& name) const;
  // Arrays for gradients: new ones, zeros unless they will be written, or those given, grads.parameters. `result` is
  // the dict of them.
  std::vector<py::array> gradients(py::handle given, bool written, py::dict& result) const;

 private:
  py::dtype dtype_;
  std::vector<std::string> names_;
  std::vector<std::vector<Index>> shapes_;
  std::vector<py::str> keys_;  // the names, for look-ups

  [[noreturn]] void throw_unexpected(const py::dict& mapping, const std::string& name) const;
};

// (rows,) integers in [0, most], an array, list or tuple; nothing for None.
std::vector<std::int64_t> lengths_of(py::handle object, const std::string& name, Index rows, Index most);

}  // namespace fusedrnn
