#include "net/parameters.h"

#include <stdexcept>

namespace fusedrnn {
namespace {

std::vector<Index> shape_of(const ParameterTraits& parameter, Index inputs, Index units) {
  std::vector<Index> shape;
  for (const Dimension& dimension : parameter.shape)
    shape.push_back(dimension.count * (dimension.of == Dimension::Of::inputs  ? inputs
                                       : dimension.of == Dimension::Of::units ? units
                                                                              : 1));
  return shape;
}

}  // namespace

int find_cell(const std::vector<CellTraits>& cells, const std::string& name) {
  for (std::size_t cell = 0; cell < cells.size(); ++cell)
    if (name == cells[cell].name) return static_cast<int>(cell);
  throw std::invalid_argument("cell must be the name of a registered cell, not '" + name + "'");
}

std::vector<ParameterTraits> parameters_of(const CellTraits& traits, bool bias) {
  const Dimension inputs = {1, Dimension::Of::inputs}, units = {1, Dimension::Of::units};
  const Dimension gates = {traits.gates, Dimension::Of::units}, rows = {traits.per_unit.rows, Dimension::Of::itself};
  std::vector<ParameterTraits> list = {{Role::weight_ih, "weight_ih", {gates, inputs}},
                                       {Role::weight_hh, "weight_hh", {gates, units}}};
  if (bias) {
    list.push_back({Role::bias_ih, "bias_ih", {gates}});
    list.push_back({Role::bias_hh, "bias_hh", {gates}});
  }
  if (traits.per_unit.rows) list.push_back({Role::per_unit, traits.per_unit.name, {rows, units}});
  return list;
}

std::vector<Parameter> parameters_of(const CellTraits& traits, const RecurrentConfig& config, bool suffixes) {
  std::vector<Parameter> list;
  std::size_t number = 0;
  for (int layer = 0; layer < config.layers; ++layer)
    for (int direction = 0; direction < config.directions; ++direction, ++number) {
      const std::string suffix = suffixes ? "_l" + std::to_string(layer) + (direction ? "_reverse" : "") : "";
      for (const ParameterTraits& parameter : parameters_of(traits, config.bias))
        list.push_back({parameter.role, number, parameter.name + suffix,
                        shape_of(parameter, config.input_of(layer), config.hidden_size)});
    }
  return list;
}

}  // namespace fusedrnn
