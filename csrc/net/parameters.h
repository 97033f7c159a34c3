// The parameters of a net: their names and shapes, and which array of a list is whose.
#pragma once
#include <string>
#include <vector>

#include "net/config.h"

namespace fusedrnn {

// A dimension of a parameter's shape: so many, or so many times the units or the inputs of a layer.
struct Dimension {
  enum class Of { itself, units, inputs };
  int count;
  Of of;
};

// A parameter that every direction of every layer has.
struct ParameterTraits {
  Role role;
  const char* name;
  std::vector<Dimension> shape;
};
std::vector<ParameterTraits> parameters_of(const CellTraits& traits, bool bias);

struct Parameter {
  Role role;
  std::size_t direction;  // layer * directions + direction
  std::string name;
  std::vector<Index> shape;
};
// In the order in which callers hand their arrays over. Names have the suffix of their layer and direction, or none.
std::vector<Parameter> parameters_of(const CellTraits& traits, const RecurrentConfig& config, bool suffixes = true);

// Of a net's parameters, or of their gradients, the arrays of each direction of each layer: that of parameter i is
// array_of(i).
template <class Real, class ArrayOf>
std::vector<ParameterArrays<Real>> by_direction(const std::vector<Parameter>& parameters, const ArrayOf& array_of) {
  std::vector<ParameterArrays<Real>> result(parameters.back().direction + 1);
  for (std::size_t i = 0; i < parameters.size(); ++i) result[parameters[i].direction][parameters[i].role] = array_of(i);
  return result;
}

}  // namespace fusedrnn
