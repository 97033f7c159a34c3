// What Python reads of the registered cells: `_core.cells`, a mapping from a cell's name to what its traits say.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/register.h"
#include "cpu/isa.h"

namespace fusedrnn {
namespace {

namespace py = pybind11;

py::tuple state_names(const CellTraits& traits) {
  if (traits.states == 1) return py::make_tuple("h");
  return py::make_tuple("h", "c");
}

// Shapes in terms of the gates G, the units H and the inputs I.
py::dict parameter_shapes(const CellTraits& traits) {
  py::dict shapes;
  shapes["weight_ih"] = py::make_tuple("G*H", "I");
  shapes["weight_hh"] = py::make_tuple("G*H", "H");
  shapes["bias_ih"] = py::make_tuple("G*H");
  shapes["bias_hh"] = py::make_tuple("G*H");
  if (traits.peepholes) shapes["peephole"] = py::make_tuple(std::to_string(traits.peepholes), "H");
  return shapes;
}

}  // namespace

void register_cells(py::module_& module) {
  py::class_<CellTraits>(module, "Cell", "What a registered cell is made of.")
      .def_property_readonly("name", [](const CellTraits& traits) { return traits.name; })
      .def_property_readonly(
          "gates", [](const CellTraits& traits) { return traits.gates; }, "Gate blocks of weight_ih and weight_hh, G.")
      .def_property_readonly("states", &state_names, "Names of the state's halves: h is the output.")
      .def_property_readonly("parameters", &parameter_shapes,
                             "Shapes of one direction's parameters by name, in the order of a layer's parameters; "
                             "without bias the two biases are missing.");
  py::dict cells;
  const Kernels<float>& table = kernels<float>();
  for (int cell = 0; cell < table.cell_count; ++cell) {
    const CellTraits& traits = table.cells[cell].traits;
    cells[traits.name] = py::cast(traits);
  }
  module.attr("cells") = py::module_::import("types").attr("MappingProxyType")(cells);
}

}  // namespace fusedrnn
