// Compiler attributes. Functions that the engine's builds share with the rest are always inlined: a copy out of line,
// compiled for one ISA, could be the one that another ISA's code calls.
#pragma once

// What a CUDA kernel may call too.
#ifdef __CUDACC__
#define FUSEDRNN_HOST_DEVICE __host__ __device__
#else
#define FUSEDRNN_HOST_DEVICE
#endif

#define FUSEDRNN_INLINE FUSEDRNN_HOST_DEVICE inline __attribute__((always_inline))
#define FUSEDRNN_NOINLINE __attribute__((noinline))
