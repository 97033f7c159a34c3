// What the drivers ask of a machine: a product, an element-wise function over a box of indices, and programs of blocks
// of threads. The drivers are written once over these; FUSEDRNN_CUDA_HOST chooses the backend that does them with plain
// loops on host memory, which is how every line of the drivers is tested without a GPU.
//
//   for_each(outer, rows, columns, f)   calls f(o, r, c) for every index, in no order that f may count on
//   for_each_block(blocks, threads, shared_bytes, program)   calls program(block, i) for every i in [0, blocks), in no
//       order. All threads of a block run the program. block.each(f) calls f(thread) in each of them and then waits for
//       all: what one thread writes in an `each` others may read in the next one, and not before. block.shared() is
//       memory of the block's own; what it holds at first is undefined. Between two `each` a program only computes what
//       is the same in all threads.
//   run_blocks(plan, arguments, workspace)   a pass of a persistent block program; see block_program.h
//   gemm(product)                       row-major C = A . B + beta C for a batch, one sum for each element
//
// A sum over many rows is two for_each: partial sums of fixed runs of rows, then the partials in order. That is the
// tree of every reduction here; nothing is added up atomically.
#pragma once
#include "common/arguments.h"
#include "cuda/runtime/device_code.h"
#include "cuda/runtime/product.h"

namespace fusedrnn {
namespace {

// Most threads of a block, and most memory that it has for itself on every device the module is compiled for.
constexpr int kMostBlockThreads = 512;
constexpr Index kSharedBytes = Index(96) << 10;

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
