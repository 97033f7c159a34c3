// What a thread tells its processor while it spins.
#pragma once
#include "common/attributes.h"

namespace fusedrnn {

// Leaves the core's resources to its other thread for a while, and does not fill the pipeline with loads that are going
// to be wrong. On 64-bit ARM `yield` does nothing on most cores; `isb` drains the pipeline, which takes about as long
// as x86's `pause`.
FUSEDRNN_INLINE void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

}  // namespace fusedrnn
