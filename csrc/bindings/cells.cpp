// What Python reads of the registered cells: `_core.cells`, a mapping from a cell's name to what its traits say.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/register.h"
#include "cpu/layers/recurrent.h"
#include "net/parameters.h"

namespace fusedrnn {
namespace {

namespace py = pybind11;

py::tuple tuple_of(const Names& names) {
  py::tuple result(names.count());
  for (int i = 0; i < names.count(); ++i) result[i] = names.name[i];
  return result;
}

// A dimension in terms of the units H and the inputs I.
std::string text_of(const Dimension& dimension) {
  if (dimension.of == Dimension::Of::itself) return std::to_string(dimension.count);
  const std::string size = dimension.of == Dimension::Of::units ? "H" : "I";
  return dimension.count == 1 ? size : std::to_string(dimension.count) + "*" + size;
}

py::dict parameter_shapes(const CellTraits& traits) {
  py::dict shapes;
  for (const ParameterTraits& parameter : parameters_of(traits, true)) {
    py::tuple shape(parameter.shape.size());
    for (std::size_t i = 0; i < parameter.shape.size(); ++i) shape[i] = text_of(parameter.shape[i]);
    shapes[parameter.name] = shape;
  }
  return shapes;
}

}  // namespace

void register_cells(py::module_& module) {
  py::class_<CellTraits>(module, "Cell", "What a registered cell is made of.")
      .def_property_readonly("name", [](const CellTraits& traits) { return traits.name; })
      .def_property_readonly(
          "gates", [](const CellTraits& traits) { return tuple_of(traits.gate_names); },
          "Names of the gate blocks of weight_ih and weight_hh, in their order.")
      .def_property_readonly(
          "states", [](const CellTraits& traits) { return tuple_of(traits.state_names); },
          "Names of the states; the first is the output.")
      .def_property_readonly("parameters", &parameter_shapes,
                             "Shapes of one direction's parameters by name, in terms of H and I and in their order; "
                             "without bias the two biases are missing.");
  py::dict cells;
  for (const CellTraits& traits : registered_cells()) cells[traits.name] = py::cast(traits);
  module.attr("cells") = py::module_::import("types").attr("MappingProxyType")(cells);
}

}  // namespace fusedrnn
