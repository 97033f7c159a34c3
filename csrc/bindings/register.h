// What each file of bindings adds to the module.
#pragma once
#include <pybind11/pybind11.h>

#include "ops/registry.h"

namespace fusedrnn {

void register_sentences(pybind11::module_& module);
void register_cells(pybind11::module_& module);
void register_recurrent(pybind11::module_& module);
void register_stepper(pybind11::module_& module);
void register_attention_decoder(pybind11::module_& module);
void register_raw(pybind11::module_& module);
void register_machine(pybind11::module_& module);
// Defined in the operation's folder: adds forward and backward to its own module.
#define FUSEDRNN_OPERATION(name, Name) void register_##name(pybind11::module_& operation);
FUSEDRNN_FOR_EACH_OPERATION(FUSEDRNN_OPERATION)
#undef FUSEDRNN_OPERATION

}  // namespace fusedrnn
