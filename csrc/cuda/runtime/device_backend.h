// The backend of a CUDA device: products by cuBLAS, element-wise functions as kernels, all on the caller's stream.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/engine.h"
#include "cuda/persistent/launch.h"
#include "cuda/runtime/backend.h"
#include "cuda/runtime/blas.h"

namespace fusedrnn {
namespace {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it: the runtime keeps it for this thread, and the next launch would report it again
  throw std::runtime_error(std::string("CUDA error: ") + what + ": " + cudaGetErrorString(error));
}

constexpr int kThreads = 128;

// A thread takes every so many-th element where the box outgrows the grid.
template <class Function>
__global__ void __launch_bounds__(kThreads, 4) run_each(const Function f, Index outer, Index rows, Index columns) {
  for (Index o = blockIdx.z; o < outer; o += gridDim.z)
    for (Index r = Index(blockIdx.y) * blockDim.y + threadIdx.y; r < rows; r += Index(gridDim.y) * blockDim.y)
      for (Index c = Index(blockIdx.x) * blockDim.x + threadIdx.x; c < columns; c += Index(gridDim.x) * blockDim.x)
        f(o, r, c);
}

// A block of threads, as each of them sees it.
class Block {
 public:
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  template <class Function>
  __device__ void each(const Function& f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  __device__ void* shared() const {
    extern __shared__ double block_memory[];
    return block_memory;
  }
};

template <class Program>
__global__ void __launch_bounds__(kMostBlockThreads)
    run_block(const __grid_constant__ Program program, const __grid_constant__ Index blocks) {
  Block block;
  for (Index i = blockIdx.x; i < blocks; i += gridDim.x) program(block, i);
}

template <class T>
constexpr BlasType blas_type() {
  if constexpr (std::is_same_v<T, double>) return BlasType::float64;
  if constexpr (std::is_same_v<T, Bfloat16>) return BlasType::bfloat16;
  if constexpr (std::is_same_v<T, Float16>) return BlasType::float16;
  return BlasType::float32;
}

// Switches to a device and back.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

class Backend {
 public:
  static constexpr std::size_t kGemmBytes = kBlasWorkspace;

  static Index chunk_bytes(Index wanted) { return wanted; }
  static Index shared_bytes() { return kSharedBytes; }
  static std::size_t block_bytes(std::size_t wanted) { return wanted; }

  Backend(const Place& place, void* gemm_space, bool tf32)
      : place_(place),
        device_(place.device),
        stream_(static_cast<cudaStream_t>(place.stream)),
        gemm_space_(gemm_space),
        tf32_(tf32) {}

  template <class Function>
  void for_each(Index outer, Index rows, Index columns, const Function& f) {
    if (outer <= 0 || rows <= 0 || columns <= 0) return;
    // As many threads along a row as it fills, the rest of the block on further rows.
    unsigned along = kThreads;
    while (along > 1 && along / 2 >= static_cast<std::size_t>(columns)) along /= 2;
    const dim3 block(along, kThreads / along);
    const auto blocks = [](Index count, unsigned per_block, Index most) {
      return static_cast<unsigned>(std::min<Index>((count + per_block - 1) / per_block, most));
    };
    const dim3 grid(blocks(columns, block.x, 1 << 20), blocks(rows, block.y, 65535), blocks(outer, 1, 65535));
    run_each<<<grid, block, 0, stream_>>>(f, outer, rows, columns);
    check(cudaGetLastError(), "kernel launch");
  }

  template <class Program>
  void for_each_block(Index blocks, int threads, std::size_t shared_bytes, const Program& program) {
    if (blocks <= 0) return;
    const auto kernel = run_block<Program>;
    // More than 48 KiB of shared memory must be asked for.
    if (shared_bytes > 48 << 10)
      check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory");
    const unsigned grid = static_cast<unsigned>(std::min<Index>(blocks, Index(1) << 30));
    kernel<<<grid, static_cast<unsigned>(threads), shared_bytes, stream_>>>(program, blocks);
    check(cudaGetLastError(), "kernel launch");
  }

  template <class T>
  void gemm(const Gemm<T>& g) {
    // A sum of no terms is only ever added here (a batch without rows): it changes nothing, and cuBLAS need not be
    // asked what it makes of null factors.
    if (g.m <= 0 || g.n <= 0 || g.batch <= 0 || (g.k <= 0 && g.add)) return;
    if (!blas_) blas_.emplace(place_.device, place_.stream, gemm_space_);
    blas_->gemm(column_major(g), blas_type<T>(), tf32_);
  }

  template <class Arguments>
  void run_blocks(const persistent::Plan& plan, const Arguments& arguments, void* workspace) {
    check(persistent::launch(plan, arguments, workspace, stream_), "launch of a block program");
  }

 private:
  Place place_;
  OnDevice device_;
  cudaStream_t stream_;
  std::optional<Blas> blas_;
  void* gemm_space_;
  bool tf32_;
};

}  // namespace
}  // namespace fusedrnn
