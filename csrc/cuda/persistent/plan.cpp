#include "cuda/persistent/plan.h"

#include "cuda/persistent/dispatch.h"
#include "cuda/persistent/operand.h"

namespace fusedrnn {
namespace persistent {
namespace {

// Gate blocks that h feeds, 0 for a cell without a block program.
int recurrent_gates(const char* cell) {
  return with_cell(cell, 0, [](auto type) { return decltype(type)::type::traits.recurrent[0].count; });
}

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

Index divided_up(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace

const char* make_plan(const Problem& problem, int multiprocessors, Plan& plan) {
  const int gates = recurrent_gates(problem.cell);
  if (gates == 0) return "the cell has no block program";
  if (problem.hidden_size < 1 || problem.hidden_size > kMaxHidden) return "the hidden size is not within 1 and 1024";
  if (problem.rows < 1) return "the batch has no rows";
  if (problem.directions < 1 || problem.directions > 2) return "there are neither one nor two directions";

  plan.problem = problem;
  plan.capacity = 0;
  for (int capacity : kCapacities)
    if (plan.capacity == 0 && problem.hidden_size <= capacity) plan.capacity = capacity;
  const bool wide = problem.precision == Precision::tf32;
  plan.units = wide ? Operand<float>::kUnits : Operand<Bfloat16>::kUnits;
  plan.blocks = static_cast<int>(divided_up(problem.hidden_size, plan.units));

  // The smallest slices whose blocks all find a multiprocessor: a stage takes as long as its largest slice.
  Index grid = 0;
  for (plan.slice_rows = 8;; plan.slice_rows *= 2) {
    const Index slices = divided_up(problem.rows, plan.slice_rows);
    grid = problem.directions * slices * plan.blocks;
    plan.slices = static_cast<int>(slices);
    if (grid <= multiprocessors || plan.slice_rows == kMaxSliceRows) break;
  }
  if (problem.form == Form::one_kernel && grid > multiprocessors)
    return "the device has too few multiprocessors for the blocks that must run at once";
  if (grid > 0x7fffffff) return "the batch has too many rows";

  const std::size_t element = wide ? 4 : 2, groups = static_cast<std::size_t>(problem.directions) * plan.slices;
  const int rows = weight_rows(problem.pass, gates, plan.units);
  const int cells_of_a_thread = kMaxSliceRows * plan.units / kThreads;
  const std::size_t buffer_bytes =
      element * product_depth(problem.pass, gates, plan.capacity) * static_cast<std::size_t>(plan.slice_rows);
  plan.exchange_stride = static_cast<Index>(buffer_bytes / sizeof(std::uint32_t));
  plan.shared_bytes = sizeof(float) * kWarps * partial_words(partial_stride(rows), plan.slice_rows);
  plan.packed_at = aligned(groups * kExchangeBuffers * buffer_bytes);
  plan.carry_at =
      plan.packed_at + element * grid * padded_rows(rows) * product_depth(problem.pass, gates, plan.capacity);
  plan.workspace_bytes = plan.carry_at + sizeof(float) * grid * kThreads * cells_of_a_thread * kCarriedValues;
  return nullptr;
}

Grid grid_of(const Plan& plan, void* workspace) {
  char* const memory = static_cast<char*>(workspace);
  Grid grid;
  grid.blocks = plan.blocks;
  grid.slices = plan.slices;
  grid.slice_rows = plan.slice_rows;
  grid.exchange = reinterpret_cast<std::uint32_t*>(memory);
  grid.exchange_stride = plan.exchange_stride;
  grid.packed = reinterpret_cast<Words*>(memory + plan.packed_at);
  grid.carry = reinterpret_cast<float*>(memory + plan.carry_at);
  return grid;
}

}  // namespace persistent
}  // namespace fusedrnn
