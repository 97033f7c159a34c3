// Entry points of the block programs: enqueue a whole pass over time on a stream. Nothing is allocated, nothing waits;
// the exchange buffers are prepared as part of the pass, so that a captured graph can be replayed.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/persistent/arguments.h"
#include "cuda/persistent/plan.h"

namespace fusedrnn {
namespace persistent {

// T is Bfloat16, Float16, or float for tf32; the plan's pass and precision must be the arguments'. `workspace` holds
// plan.workspace_bytes, aligned to 256, and is the call's alone until the stream has passed it. The arguments' grid is
// filled in here. The current device must be the stream's, with compute capability 8.0 or more.
template <class T>
cudaError_t launch(const Plan& plan, ForwardProgramArguments<T> arguments, void* workspace, cudaStream_t stream);
template <class T>
cudaError_t launch(const Plan& plan, BackwardProgramArguments<T> arguments, void* workspace, cudaStream_t stream);

}  // namespace persistent
}  // namespace fusedrnn
