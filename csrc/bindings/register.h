// What each file of bindings adds to the module.
#pragma once
#include <pybind11/pybind11.h>

namespace fusedrnn {

void register_cells(pybind11::module_& module);
void register_recurrent(pybind11::module_& module);
void register_stepper(pybind11::module_& module);
void register_linear(pybind11::module_& module);
void register_cross_entropy(pybind11::module_& module);
void register_raw(pybind11::module_& module);
void register_machine(pybind11::module_& module);

}  // namespace fusedrnn
