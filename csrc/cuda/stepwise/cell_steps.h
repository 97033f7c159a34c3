// A cell's kernels as functions, so that the driver is compiled once for all cells.
#pragma once
#include "cuda/stepwise/backward_step.h"
#include "cuda/stepwise/norms.h"

namespace fusedrnn {
namespace {

template <class T>
struct CellSteps {
  CellTraits traits;
  // After the first product of `rows` rows from step `begin` on; for cells of two phases.
  void (*operand)(Backend&, const StepArrays<T>&, Index directions, Index rows, Index begin);
  void (*forward)(Backend&, const StepArrays<T>&, Index directions, Index begin, Index end);
  void (*backward)(Backend&, const BackwardArrays<T>&, Index directions, Index step);
  void (*backward_operand)(Backend&, const BackwardArrays<T>&, Index directions, Index step);
  void (*measure)(Backend&, const BackwardArrays<T>&, const Measured<T>&, Index directions);
  void (*per_unit)(Backend&, const BackwardArrays<T>&, Index directions, Index rows, Accumulator<T>* partial);
};

template <class Cell, class T>
CellSteps<T> steps_of() {
  CellSteps<T> steps = {};
  steps.traits = Cell::traits;
  steps.forward = [](Backend& backend, const StepArrays<T>& a, Index directions, Index begin, Index end) {
    backend.for_each(directions, a.steps.rows, a.hidden, ForwardStep<Cell, T>{a, begin, end});
  };
  steps.backward = [](Backend& backend, const BackwardArrays<T>& a, Index directions, Index step) {
    backend.for_each(directions, a.steps.rows, a.hidden, BackwardStep<Cell, T>{a, step});
  };
  steps.measure = [](Backend& backend, const BackwardArrays<T>& a, const Measured<T>& m, Index directions) {
    backend.for_each(directions, a.steps.rows, a.hidden, MeasureStates<Cell, T>{a, m});
  };
  if constexpr (Cell::traits.phases == 2) {
    steps.operand = [](Backend& backend, const StepArrays<T>& a, Index directions, Index rows, Index begin) {
      backend.for_each(directions, rows, a.hidden, OperandStep<Cell, T>{a, begin});
    };
    steps.backward_operand = [](Backend& backend, const BackwardArrays<T>& a, Index directions, Index step) {
      backend.for_each(directions, a.steps.rows, a.hidden, BackwardOperand<Cell, T>{a, step});
    };
  }
  if constexpr (Cell::traits.per_unit.rows > 0)
    steps.per_unit = [](Backend& backend, const BackwardArrays<T>& a, Index directions, Index rows,
                        Accumulator<T>* partial) {
      backend.for_each(directions, kParts, a.hidden, PerUnitPart<Cell, T>{a, rows, partial});
    };
  return steps;
}

template <class T>
CellSteps<T> cell_steps(int index) {
  using Make = CellSteps<T> (*)();
#define FUSEDRNN_STEPS_OF(...) &steps_of<__VA_ARGS__, T>,
  static constexpr Make makers[] = {FUSEDRNN_FOR_EACH_CELL(FUSEDRNN_STEPS_OF)};
#undef FUSEDRNN_STEPS_OF
  return makers[index]();
}

}  // namespace
}  // namespace fusedrnn
