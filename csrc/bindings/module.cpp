// fusedrnn._core: a table of contents.
#include "bindings/register.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled part of fusedrnn.";
  fusedrnn::register_machine(module);
  fusedrnn::register_sentences(module);
  fusedrnn::register_cells(module);
  fusedrnn::register_stepper(module);
  fusedrnn::register_recurrent(module);
  fusedrnn::register_attention_decoder(module);
  fusedrnn::register_raw(module);
  pybind11::dict operations;  // each a module of its own, by its name
#define FUSEDRNN_OPERATION(name, Name)                         \
  {                                                            \
    pybind11::module_ operation = module.def_submodule(#name); \
    fusedrnn::register_##name(operation);                      \
    operations[#name] = operation;                             \
  }
  FUSEDRNN_FOR_EACH_OPERATION(FUSEDRNN_OPERATION)
#undef FUSEDRNN_OPERATION
  module.attr("operations") = operations;
}
