// The block programs in the host build of the engine that the tests use: what launch.cuh is on a device.
#include "cuda/persistent/host.h"

#include <stdexcept>

#include "cuda/runtime/host_backend.h"

namespace fusedrnn {
namespace persistent {
namespace {

// The smallest: sizes do not matter to what surrounds the programs.
struct Compiled {
  template <class, class, int kCapacity>
  static constexpr bool program = kCapacity == kCapacities[0];
};

template <template <class, class, int> class Program, class T, class Arguments>
void run_adversely(const Plan& plan, Arguments& arguments, void* workspace) {
  std::string error;
  Scheduler scheduler(host_reversed, error);
  run_program<Program, Compiled, T>(plan, arguments, workspace, scheduler);
  if (!error.empty()) throw std::runtime_error("block program: " + error);
}

}  // namespace

template <class T>
void run_on_host(const Plan& plan, ForwardProgramArguments<T> arguments, void* workspace) {
  run_adversely<ForwardProgram, T>(plan, arguments, workspace);
}
template <class T>
void run_on_host(const Plan& plan, BackwardProgramArguments<T> arguments, void* workspace) {
  run_adversely<BackwardProgram, T>(plan, arguments, workspace);
}

#define FUSEDRNN_INSTANTIATE(T)                                              \
  template void run_on_host(const Plan&, ForwardProgramArguments<T>, void*); \
  template void run_on_host(const Plan&, BackwardProgramArguments<T>, void*);
FUSEDRNN_INSTANTIATE(Bfloat16)
FUSEDRNN_INSTANTIATE(Float16)
FUSEDRNN_INSTANTIATE(float)

}  // namespace persistent
}  // namespace fusedrnn
