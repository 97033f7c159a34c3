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

// The namespace of what the engine's builds compile for each instruction set: in profiles its name tells them apart.
// The cells, which the CUDA engine includes too, are not in it: nvcc gives every unnamed namespace of a file the same
// name, which within an inline namespace would be ambiguous.
#ifndef FUSEDRNN_ISA_NAME
#define FUSEDRNN_ISA_NAME once
#endif
