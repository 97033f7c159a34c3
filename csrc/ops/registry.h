// Every operation: a function that is no recurrence. A new one is registered by its line here, (name, Name), and by the
// includes below. The name is that of its folder, of its kernels in the tables and of its functions in Python; Name
// begins those of its types: kernels Name<Real>, arguments NameArguments<Real>, and on a device the call NameCall.
#pragma once

// Those with kernels for the CPU and for a device.
#define FUSEDRNN_FOR_EACH_DEVICE_OPERATION(APPLY) \
  APPLY(linear, Linear)                           \
  APPLY(linear_cross_entropy, LinearCrossEntropy) \
  APPLY(ctc_loss, CtcLoss)                        \
  APPLY(additive_attention, AdditiveAttention)    \
  APPLY(transducer_loss, TransducerLoss)          \
  APPLY(affine_grid, AffineGrid)                  \
  APPLY(grid_sample, GridSample)                  \
  APPLY(gaussian_read, GaussianRead)              \
  APPLY(gaussian_write, GaussianWrite)

// Those, and the ones that on a device are the array library's, or are not there.
#define FUSEDRNN_FOR_EACH_OPERATION(APPLY)  \
  FUSEDRNN_FOR_EACH_DEVICE_OPERATION(APPLY) \
  APPLY(softmax, Softmax)

// cpu/operations.cpp and cuda/operations.cu are compiled with their kernels, all else with the arguments alone.
#if defined(FUSEDRNN_CPU_OPERATIONS)
#include "ops/additive_attention/kernel.h"
#include "ops/affine_grid/kernel.h"
#include "ops/ctc_loss/kernel.h"
#include "ops/gaussian_read/kernel.h"
#include "ops/gaussian_write/kernel.h"
#include "ops/grid_sample/kernel.h"
#include "ops/linear/kernel.h"
#include "ops/linear_cross_entropy/kernel.h"
#include "ops/softmax/kernel.h"
#include "ops/transducer_loss/kernel.h"
#elif defined(FUSEDRNN_CUDA_OPERATIONS)
#include "ops/additive_attention/kernel.cuh"
#include "ops/affine_grid/kernel.cuh"
#include "ops/ctc_loss/kernel.cuh"
#include "ops/gaussian_read/kernel.cuh"
#include "ops/gaussian_write/kernel.cuh"
#include "ops/grid_sample/kernel.cuh"
#include "ops/linear/kernel.cuh"
#include "ops/linear_cross_entropy/kernel.cuh"
#include "ops/transducer_loss/kernel.cuh"
#else
#include "ops/additive_attention/arguments.h"
#include "ops/affine_grid/arguments.h"
#include "ops/ctc_loss/arguments.h"
#include "ops/gaussian_read/arguments.h"
#include "ops/gaussian_write/arguments.h"
#include "ops/grid_sample/arguments.h"
#include "ops/linear/arguments.h"
#include "ops/linear_cross_entropy/arguments.h"
#include "ops/softmax/arguments.h"
#include "ops/transducer_loss/arguments.h"
#endif
