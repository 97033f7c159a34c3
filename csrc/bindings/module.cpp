// fusedrnn._core: a table of contents.
#include "bindings/register.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled part of fusedrnn.";
  fusedrnn::register_machine(module);
  fusedrnn::register_cells(module);
  fusedrnn::register_stepper(module);
  fusedrnn::register_recurrent(module);
  fusedrnn::register_linear(module);
  fusedrnn::register_cross_entropy(module);
  fusedrnn::register_raw(module);
}
