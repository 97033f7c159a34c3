// A cell's states as callers give and get them: an array, or one for each state where there are several.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "bindings/numpy/arrays.h"
#include "cells/traits.h"

namespace fusedrnn {

// The objects of which each should be the array of one state.
std::array<py::object, kMaxStates> split_state(py::handle state, const std::string& name, const CellTraits& traits);
// What errors call the array of one state.
std::string state_name(const std::string& name, const CellTraits& traits, int state);
py::object joined_state(const std::vector<py::array>& arrays);

}  // namespace fusedrnn
