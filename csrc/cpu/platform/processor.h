// What an x86-64 processor and its operating system can run. The compilers' own answer, __builtin_cpu_supports with the
// name of a level, came with GCC 12 and Clang 18 only.
#pragma once
#include <cstdint>

namespace fusedrnn {

struct ProcessorFeatures {
  std::uint32_t leaf1_ecx;      // CPUID leaf 1
  std::uint32_t leaf7_ebx;      // CPUID leaf 7, subleaf 0
  std::uint32_t extended_ecx;   // CPUID leaf 0x80000001
  std::uint64_t saved_state;    // extended control register 0: the registers that the operating system keeps per thread
  std::uint32_t leaf7_ecx = 0;  // CPUID leaf 7, subleaf 0
};

#if defined(__x86_64__)
ProcessorFeatures processor_features();
// Whether it multiplies pairs of bfloat16 (AVX512-BF16), and whether it does so at the rate of its other fused
// multiply-adds, as AMD's do: on Intel's it runs at half that rate.
bool multiplies_pairs();
bool multiplies_pairs_fast();
// Whether processor and operating system have AMX's tiles of bfloat16, and whether this process got leave to use them:
// before that their first instruction is an illegal one. Asks each time; the leave lasts.
bool has_tiles();
bool request_tiles();
#endif

// The highest level of the x86-64 psABI, 1 to 4, whose instructions may be used: x86-64-v1 to x86-64-v4.
int x86_level(const ProcessorFeatures& features);
// Whether beside x86-64-v4 there are AVX-512's instructions that multiply bytes.
bool has_avx512_vnni(const ProcessorFeatures& features);

}  // namespace fusedrnn
