// Runs the block programs on the host, for tests/cuda_engine/test_block_program.py. The structs of arguments cross as
// they are.
#include "cuda/persistent/host.h"

#include <cstdio>

namespace fusedrnn {
namespace persistent {
namespace {

struct Compiled {
  template <class T, class Cell, int kCapacity>
  static constexpr bool program = std::is_same_v<T, Float16> || std::is_same_v<Cell, Lstm<false, true>>
                                      ? kCapacity == 256
                                      : std::is_same_v<T, Bfloat16> || kCapacity == 256 || kCapacity == 1024;
};

template <template <class> class Arguments, template <class, class, int> class Program>
void run_type(const Plan& plan, void* arguments, void* workspace, Scheduler& scheduler) {
  switch (plan.problem.precision) {
    case Precision::bfloat16:
      return run_program<Program, Compiled, Bfloat16>(plan, *static_cast<Arguments<Bfloat16>*>(arguments), workspace,
                                                      scheduler);
    case Precision::float16:
      return run_program<Program, Compiled, Float16>(plan, *static_cast<Arguments<Float16>*>(arguments), workspace,
                                                     scheduler);
    case Precision::tf32:
      return run_program<Program, Compiled, float>(plan, *static_cast<Arguments<float>*>(arguments), workspace,
                                                   scheduler);
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
  const std::size_t sizes[] = {sizeof(Problem), sizeof(Plan), sizeof(ForwardProgramArguments<float>),
                               sizeof(BackwardProgramArguments<float>)};
  return sizes[which];
}

// Writes what went wrong, or nothing, to `message`.
void block_program_run(const Plan* plan, void* arguments, void* workspace, unsigned seed, bool fences, char* message,
                       std::size_t size) {
  std::string error;
  Scheduler scheduler(seed, error);
  scheduler.fences = fences;
  if (plan->problem.pass == Pass::forward)
    run_type<ForwardProgramArguments, ForwardProgram>(*plan, arguments, workspace, scheduler);
  else
    run_type<BackwardProgramArguments, BackwardProgram>(*plan, arguments, workspace, scheduler);
  std::snprintf(message, size, "%s", error.c_str());
}
}
