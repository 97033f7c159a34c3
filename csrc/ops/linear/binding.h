// The checks that linear maps share.
#pragma once
#include <optional>
#include <string>

#include "bindings/numpy/arrays.h"

namespace fusedrnn {

struct LinearInputs {
  py::array x, weight;
  std::optional<py::array> bias;
};

// x (..., in), weight (out, in) and bias (out,) or None, of one dtype and contiguous. The letters are those of the
// documentation. Of float32, float64 or, where `or_bfloat16`, that.
LinearInputs check_linear(py::handle x, py::handle weight, py::handle bias, const char* out, const char* in,
                          bool or_bfloat16 = false);
// The last two of them alone, for an x that has been checked, of so many features.
void check_linear_parameters(LinearInputs& inputs, py::handle weight, py::handle bias, const char* out, Index features);

}  // namespace fusedrnn
