// How functions of kernels are declared, and their loops compiled.
#pragma once
#include "common/attributes.h"

// What is called in kernels alone; FUSEDRNN_HOST_DEVICE is called elsewhere too.
#ifdef __CUDACC__
#define FUSEDRNN_DEVICE __device__
#else
#define FUSEDRNN_DEVICE
#endif

#ifdef __CUDA_ARCH__
#define FUSEDRNN_UNROLL _Pragma("unroll")
#define FUSEDRNN_KEEP_ROLLED _Pragma("unroll 1")
#else
#define FUSEDRNN_UNROLL
#define FUSEDRNN_KEEP_ROLLED
#endif
