// Runs the block programs on the host, for tests/test_block_program.py. The structs of arguments cross as they are.
#include "block_program/host.h"

#include <cstdio>

#include "cuda/persistent/backward.h"
#include "cuda/persistent/dispatch.h"
#include "cuda/persistent/forward.h"

namespace fusedrnn {
namespace persistent {
namespace {

// As launch_phases of csrc/cuda/persistent/launch.cuh.
template <class Program>
void run_phases(const Plan& plan, const typename Program::Arguments& arguments, Scheduler& scheduler) {
  const auto kernel = [&](int first, int end) {
    scheduler.run(plan.grid(), [&, first, end](int block) {
      const auto policy = std::make_unique<HostPolicy<typename Program::Thread>>(block, plan.shared_bytes, scheduler);
      Program::run(*policy, arguments, first, end);
    });
  };
  const int phases = arguments.batch.steps() + 1;
  std::memset(arguments.grid.flags, 0, plan.cleared_bytes);
  if (plan.problem.form == Form::one_kernel) return kernel(0, phases);
  for (int phase = 0; phase < phases; ++phase) kernel(phase, phase + 1);
}

// What the tests run: compiling every program, as the device does, would take half a minute.
template <class T, class Cell, int kCapacity>
constexpr bool is_compiled() {
  if (std::is_same_v<T, Float16> || std::is_same_v<Cell, Lstm<false, true>>) return kCapacity == 256;
  return std::is_same_v<T, Bfloat16> || kCapacity == 256 || kCapacity == 1024;
}

template <template <class, class, int> class Program, class T, class Arguments>
void run_program(const Plan& plan, Arguments& arguments, void* workspace, Scheduler& scheduler) {
  arguments.grid = grid_of(plan, workspace);
  const bool found = with_cell(plan.problem.cell, false, [&](auto cell) {
    using Cell = typename std::decay_t<decltype(cell)>::type;
    return with_capacity(plan.capacity, false, [&](auto capacity) {
      constexpr int kCapacity = decltype(capacity)::value;
      if constexpr (is_compiled<T, Cell, kCapacity>())
        run_phases<Program<T, Cell, kCapacity>>(plan, arguments, scheduler);
      return is_compiled<T, Cell, kCapacity>();
    });
  });
  if (!found) scheduler.fail("the tests do not compile this program");
}

template <template <class> class Arguments, template <class, class, int> class Program>
void run_type(const Plan& plan, void* arguments, void* workspace, Scheduler& scheduler) {
  switch (plan.problem.precision) {
    case Precision::bfloat16:
      return run_program<Program, Bfloat16>(plan, *static_cast<Arguments<Bfloat16>*>(arguments), workspace, scheduler);
    case Precision::float16:
      return run_program<Program, Float16>(plan, *static_cast<Arguments<Float16>*>(arguments), workspace, scheduler);
    case Precision::tf32:
      return run_program<Program, float>(plan, *static_cast<Arguments<float>*>(arguments), workspace, scheduler);
  }
}

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn

using namespace fusedrnn::persistent;

extern "C" {

const char* block_program_plan(const Problem* problem, int multiprocessors, Plan* plan) {
  return make_plan(*problem, multiprocessors, *plan);
}

std::size_t block_program_size(int which) {
  const std::size_t sizes[] = {sizeof(Problem), sizeof(Plan), sizeof(ForwardArguments<float>),
                               sizeof(BackwardArguments<float>)};
  return sizes[which];
}

// Writes what went wrong, or nothing, to `message`.
void block_program_run(const Plan* plan, void* arguments, void* workspace, unsigned seed, char* message,
                       std::size_t size) {
  std::string error;
  Scheduler scheduler(seed, error);
  if (plan->problem.pass == Pass::forward)
    run_type<ForwardArguments, Forward>(*plan, arguments, workspace, scheduler);
  else
    run_type<BackwardArguments, Backward>(*plan, arguments, workspace, scheduler);
  std::snprintf(message, size, "%s", error.c_str());
}
}
