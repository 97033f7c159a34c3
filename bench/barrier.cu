// What the exchange between the blocks of csrc/cuda/persistent costs, to be run before anything else on a new GPU:
//
//   nvcc -std=c++17 -O3 -arch=sm_90a bench/barrier.cu -o barrier && ./barrier
//
// For some numbers of blocks, the time of a phase that does nothing but exchange: publish and wait alone, and with the
// h of 8 and 32 rows written before and read after it. Every word read is checked, so that it tests the ordering of
// memory as well; a phase that hangs ends the program after a second.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

constexpr int kThreads = 256, kPhases = 2000, kUnits = 16;
constexpr long long kTimeout = 2000000000;  // clocks

__device__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Each block owns `words` uint4 of a buffer, writes the phase's number there, and reads everybody's.
__global__ void __launch_bounds__(kThreads, 1) exchange(unsigned* flags, uint4* buffers, int words, unsigned* errors) {
  const int blocks = gridDim.x, block = blockIdx.x, thread = threadIdx.x, total = words * blocks;
  for (unsigned phase = 0; phase < kPhases; ++phase) {
    uint4* const buffer = buffers + phase % 2 * total;
    for (int i = thread; i < words; i += kThreads)
      __stcg(buffer + block * words + i, make_uint4(phase, phase, phase, phase));
    __syncthreads();
    if (thread == 0) store_release(flags + block, phase + 1);
    if (thread < 32) {
      const long long start = clock64();
      for (int i = thread; i < blocks; i += 32)
        while (load_acquire(flags + i) < phase + 1)
          if (clock64() - start > kTimeout) __trap();
    }
    __syncthreads();
    unsigned wrong = 0;
    for (int i = thread; i < total; i += kThreads) {
      const uint4 value = __ldcg(buffer + i);
      wrong += value.x != phase || value.w != phase;
    }
    if (wrong) atomicAdd(errors, wrong);
  }
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  std::printf("%s, %d multiprocessors; us a phase, the best of 5 runs of %d phases\n", device.name,
              device.multiProcessorCount, kPhases);
  std::printf("%8s %12s %12s %12s\n", "blocks", "flags only", "8 rows", "32 rows");
  unsigned *flags, *errors;
  uint4* buffers;
  const int most = device.multiProcessorCount;
  check(cudaMalloc(&flags, most * sizeof(unsigned)), "flags");
  check(cudaMalloc(&errors, sizeof(unsigned)), "errors");
  check(cudaMalloc(&buffers, size_t(2) * most * kUnits * 32 * 2), "buffers");
  check(cudaMemset(errors, 0, sizeof(unsigned)), "errors");
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  for (int blocks : {1, 16, 32, 48, 64, 96, 128}) {
    if (blocks > most) break;
    std::printf("%8d", blocks);
    for (int rows : {0, 8, 32}) {
      int words = rows * kUnits * 2 / int(sizeof(uint4));
      float best = 1e30f;
      for (int run = 0; run < 5; ++run) {
        check(cudaMemset(flags, 0, most * sizeof(unsigned)), "flags");
        void* arguments[] = {&flags, &buffers, &words, &errors};
        check(cudaEventRecord(start), "event");
        check(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(exchange), dim3(blocks), dim3(kThreads), arguments, 0,
                                          nullptr),
              "launch");
        check(cudaEventRecord(stop), "event");
        check(cudaEventSynchronize(stop), "run");
        float milliseconds;
        check(cudaEventElapsedTime(&milliseconds, start, stop), "event");
        best = std::min(best, milliseconds);
      }
      std::printf(" %12.3f", best * 1e3f / kPhases);
    }
    std::printf("\n");
  }
  unsigned wrong;
  check(cudaMemcpy(&wrong, errors, sizeof(wrong), cudaMemcpyDeviceToHost), "errors");
  std::printf("%u words read were not what had been written\n", wrong);
  return wrong != 0;
}
