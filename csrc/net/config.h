// The sizes and options of a net of layers, on whichever device.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cells/traits.h"
#include "common/arguments.h"

namespace fusedrnn {

// One for each of a cell's states, in their order; what comes after them is empty.
template <class Item>
using States = std::array<Item, kMaxStates>;

struct RecurrentConfig {
  int cell = 0;  // among the registered cells
  Index input_size = 1, hidden_size = 1;
  int layers = 1, directions = 1;
  bool bias = true;
  bool reverse = false;  // a single direction, from the end to the beginning
  double clip = 0;       // bound on every gate's pre-activation, or 0
  double dropout = 0;
  std::uint64_t seed = 0;

  bool reversed(int direction) const { return reverse || direction == 1; }
  Index width() const { return directions * hidden_size; }
  Index input_of(int layer) const { return layer == 0 ? input_size : width(); }
};

// Index of a cell by its name. Throws std::invalid_argument.
int find_cell(const std::vector<CellTraits>& cells, const std::string& name);

}  // namespace fusedrnn
