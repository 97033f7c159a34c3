// Recurrences with weights of 8 bits, compiled once for each instruction set under the rules of engine.cpp beside this.
// A file of its own, because it has builds that the engine lacks: those with instructions that multiply bytes.
#include "cpu/int8.h"

#include "cells/registry.h"
#include "cpu/kernels.h"
#include "cpu/recurrence/int8_forward.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Cell>
void step(const StepArguments<float>& arguments, const Int8Direction& direction, Worker& worker) {
  Int8Step<Cell>(arguments, direction, worker).run();
}
template <class Cell>
void forward(const ForwardArguments<float>& arguments, const Int8Direction& direction, Worker& worker) {
  Int8Forward<Cell>(arguments, direction, worker).run();
}

#define FUSEDRNN_INT8_CELL(...) {__VA_ARGS__::traits, step<__VA_ARGS__>, forward<__VA_ARGS__>},
const Int8CellKernels cells[] = {FUSEDRNN_FOR_EACH_CELL(FUSEDRNN_INT8_CELL)};

const Int8Kernels kernels = {cells, DotSum::instruction};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME

const Int8Kernels& FUSEDRNN_OF_BUILD(kernels, FUSEDRNN_ISA_NAME, int8)() { return kernels; }

}  // namespace fusedrnn
