// The kernels of one number type, and their launch. Included by a file for each type, so that they compile side by
// side.
#pragma once
#include "cuda/persistent/backward.h"
#include "cuda/persistent/device.cuh"
#include "cuda/persistent/dispatch.h"
#include "cuda/persistent/forward.h"
#include "cuda/persistent/launch.h"

namespace fusedrnn {
namespace persistent {
namespace {

template <class Program>
__global__ void __launch_bounds__(kThreads, 1)
    run_stages(const __grid_constant__ typename Program::Arguments arguments, int first_stage, int end_stage) {
  DevicePolicy<typename Program::Thread> policy;
  Program::run(policy, arguments, first_stage, end_stage);
}

template <class Program>
__global__ void prepare_exchange(const __grid_constant__ typename Program::Arguments arguments, Index words) {
  for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < words; i += Index(gridDim.x) * kThreads)
    Program::Exchange::prepare(arguments.batch, arguments.grid, i);
}

template <class Program, class Arguments>
cudaError_t launch_stages(const Plan& plan, Arguments& arguments, cudaStream_t stream) {
  const auto kernel = run_stages<Program>;
  const int stages = arguments.batch.steps() + 1;
  // More than 48 KiB of shared memory must be asked for.
  cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  const Index words = plan.exchange_words();
  const unsigned blocks = static_cast<unsigned>(smaller((words + kThreads - 1) / kThreads, Index(1024)));
  prepare_exchange<Program><<<blocks, kThreads, 0, stream>>>(arguments, words);
  if ((error = cudaGetLastError()) != cudaSuccess) return error;
  if (plan.problem.form == Form::one_kernel) {
    int first = 0, end = stages;
    void* parameters[] = {&arguments, &first, &end};
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(plan.grid()), dim3(kThreads),
                                       parameters, plan.shared_bytes, stream);
  }
  for (int stage = 0; stage < stages; ++stage)
    kernel<<<plan.grid(), kThreads, plan.shared_bytes, stream>>>(arguments, stage, stage + 1);
  return cudaGetLastError();
}

template <template <class, class, int> class Program, class T, class Arguments>
cudaError_t launch_program(const Plan& plan, Arguments& arguments, void* workspace, cudaStream_t stream) {
  arguments.grid = grid_of(plan, workspace);
  return with_cell(plan.problem.cell, cudaErrorInvalidValue, [&](auto cell) {
    using Cell = typename std::decay_t<decltype(cell)>::type;
    return with_capacity(plan.capacity, cudaErrorInvalidValue, [&](auto capacity) {
      return launch_stages<Program<T, Cell, decltype(capacity)::value>>(plan, arguments, stream);
    });
  });
}

}  // namespace

template <class T>
cudaError_t launch(const Plan& plan, ForwardProgramArguments<T> arguments, void* workspace, cudaStream_t stream) {
  return launch_program<ForwardProgram, T>(plan, arguments, workspace, stream);
}
template <class T>
cudaError_t launch(const Plan& plan, BackwardProgramArguments<T> arguments, void* workspace, cudaStream_t stream) {
  return launch_program<BackwardProgram, T>(plan, arguments, workspace, stream);
}

}  // namespace persistent
}  // namespace fusedrnn

#define FUSEDRNN_INSTANTIATE_LAUNCH(T)                                                       \
  template cudaError_t launch(const Plan&, ForwardProgramArguments<T>, void*, cudaStream_t); \
  template cudaError_t launch(const Plan&, BackwardProgramArguments<T>, void*, cudaStream_t);
