// What the drivers ask of a machine: a product, and an element-wise function over a box of indices. The drivers are
// written once over these two; FUSEDRNN_CUDA_HOST chooses the backend that does both with plain loops on host memory,
// which is how every line of the drivers is tested without a GPU.
//
//   for_each(outer, rows, columns, f)   calls f(o, r, c) for every index, in no order that f may count on
//   run_blocks(plan, arguments, workspace)   a pass of a persistent block program; see block_program.h
//   gemm(product)                       row-major C = A . B + beta C for a batch, one sum for each element
//
// A sum over many rows is two for_each: partial sums of fixed runs of rows, then the partials in order. That is the
// tree of every reduction here; nothing is added up atomically.
#pragma once
#include "common/arguments.h"
#include "cuda/runtime/product.h"

namespace fusedrnn {
namespace {

// Partial sums of a reduction over rows.
constexpr Index kParts = 32;
FUSEDRNN_INLINE Index part_begin(Index count, Index part) { return count * part / kParts; }

FUSEDRNN_INLINE std::uint64_t fetch_add(std::uint64_t* counter, unsigned increment) {
#ifdef __CUDA_ARCH__
  return atomicAdd(reinterpret_cast<unsigned long long*>(counter), increment);
#else
  return __atomic_fetch_add(counter, increment, __ATOMIC_RELAXED);
#endif
}

}  // namespace
}  // namespace fusedrnn

#ifdef FUSEDRNN_CUDA_HOST
#include "cuda/runtime/host_backend.h"
#else
#include "cuda/runtime/device_backend.h"
#endif
