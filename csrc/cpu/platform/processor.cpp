#include "cpu/platform/processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fusedrnn {
namespace {

// Bits by their names in the manuals of Intel and AMD; the levels are those of the x86-64 psABI, section 3.1.1.

constexpr std::uint32_t kSse3 = 1u << 0, kSsse3 = 1u << 9, kCmpxchg16b = 1u << 13, kSse41 = 1u << 19, kSse42 = 1u << 20,
                        kPopcnt = 1u << 23, kFma = 1u << 12, kMovbe = 1u << 22, kOsxsave = 1u << 27, kAvx = 1u << 28,
                        kF16c = 1u << 29;  // of leaf1_ecx

constexpr std::uint32_t kBmi1 = 1u << 3, kAvx2 = 1u << 5, kBmi2 = 1u << 8, kAvx512f = 1u << 16, kAvx512dq = 1u << 17,
                        kAvx512cd = 1u << 28, kAvx512bw = 1u << 30, kAvx512vl = 1u << 31;  // of leaf7_ebx

constexpr std::uint32_t kAvx512Vnni = 1u << 11;  // of leaf7_ecx

constexpr std::uint32_t kLahf = 1u << 0, kLzcnt = 1u << 5;  // of extended_ecx

// Of saved_state: the XMM registers and the upper halves of YMM; masks, upper halves of ZMM, and ZMM16 to ZMM31.
// Without these a processor may have the instructions and yet trap on them, or lose a register when threads take turns.
constexpr std::uint64_t kXmm = 1u << 1, kYmm = 1u << 2, kOpmask = 1u << 5, kUpperZmm = 1u << 6, kHighZmm = 1u << 7;

constexpr ProcessorFeatures kLevel2 = {kSse3 | kSsse3 | kCmpxchg16b | kSse41 | kSse42 | kPopcnt, 0, kLahf, 0};
constexpr ProcessorFeatures kLevel3 = {kFma | kMovbe | kOsxsave | kAvx | kF16c, kBmi1 | kAvx2 | kBmi2, kLzcnt,
                                       kXmm | kYmm};
constexpr ProcessorFeatures kLevel4 = {0, kAvx512f | kAvx512dq | kAvx512cd | kAvx512bw | kAvx512vl, 0,
                                       kOpmask | kUpperZmm | kHighZmm};

template <class Word>
bool has_all(Word word, Word wanted) {
  return (word & wanted) == wanted;
}

bool has(const ProcessorFeatures& features, const ProcessorFeatures& wanted) {
  return has_all(features.leaf1_ecx, wanted.leaf1_ecx) && has_all(features.leaf7_ebx, wanted.leaf7_ebx) &&
         has_all(features.extended_ecx, wanted.extended_ecx) && has_all(features.saved_state, wanted.saved_state);
}

}  // namespace

#if defined(__x86_64__)
ProcessorFeatures processor_features() {
  ProcessorFeatures features = {};
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) features.leaf1_ecx = ecx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) features.leaf7_ebx = ebx, features.leaf7_ecx = ecx;
  if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) features.extended_ecx = ecx;
  if (has_all(features.leaf1_ecx, kOsxsave)) {  // else the next instruction is an illegal one
    asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    features.saved_state = std::uint64_t(edx) << 32 | eax;
  }
  return features;
}
#endif

#if defined(__x86_64__)
bool has_tiles() {
#if defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;                  // of leaf 7, edx
  constexpr std::uint64_t kTileConfiguration = 1u << 17, kTileData = 1u << 18;  // of saved_state
  const ProcessorFeatures features = processor_features();
  unsigned eax, ebx, ecx, edx;
  return x86_level(features) >= 4 && has_all(features.saved_state, kTileConfiguration | kTileData) &&
         __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && has_all(edx, kAmxBf16 | kAmxTile);
#else
  return false;
#endif
}
bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return has_tiles() && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

bool multiplies_pairs() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kAvx512Bf16 = 1u << 5;  // of leaf 7, subleaf 1
  return x86_level(processor_features()) >= 4 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
         has_all(eax, kAvx512Bf16);
}
bool multiplies_pairs_fast() {
  unsigned eax, ebx, ecx, edx;
  return multiplies_pairs() && __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_AMD_ebx &&
         ecx == signature_AMD_ecx && edx == signature_AMD_edx;
}
#endif

int x86_level(const ProcessorFeatures& features) {
  if (!has(features, kLevel2)) return 1;
  if (!has(features, kLevel3)) return 2;
  return has(features, kLevel4) ? 4 : 3;
}

bool has_avx512_vnni(const ProcessorFeatures& features) {
  return x86_level(features) >= 4 && has_all(features.leaf7_ecx, kAvx512Vnni);
}

}  // namespace fusedrnn
