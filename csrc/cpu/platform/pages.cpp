#include "cpu/platform/pages.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cstdint>

namespace fusedrnn {

void* map_pages(std::size_t bytes, std::size_t alignment) {
  const std::size_t slack = alignment == kHugePage ? kHugePage : 0;
  void* const mapped = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  if (slack == 0) return mapped;
  char* const start = static_cast<char*>(mapped);
  const std::size_t before = (slack - reinterpret_cast<std::uintptr_t>(start) % slack) % slack;
  if (before > 0) munmap(start, before);
  if (before < slack) munmap(start + before + bytes, slack - before);
  return start + before;
}

void unmap_pages(void* data, std::size_t bytes) { munmap(data, bytes); }

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
}

void trim_heap() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

double coarse_seconds() {
  timespec now = {};
#if defined(CLOCK_MONOTONIC_COARSE)
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
  clock_gettime(CLOCK_MONOTONIC, &now);
#endif
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace fusedrnn
