// Never compiled by the project itself, which has no Mac. It uses documented functions only. What has none (affinity,
// the time that a thread waited, the load of other processes, sleeping on a word) is reported as unknown, or replaced
// by yielding.
#if defined(__APPLE__)
#include <sched.h>
#include <sys/sysctl.h>

#include <algorithm>

#include "cpu/platform/system.h"

namespace fusedrnn {
namespace {

// A number by its name, of 4 or 8 bytes; 0 where there is none.
Index system_number(const char* name) {
  std::int64_t number = 0;  // both kinds of Mac put the lower bytes first
  std::size_t bytes = sizeof number;
  return sysctlbyname(name, &number, &bytes, nullptr, 0) == 0 ? static_cast<Index>(number) : 0;
}

}  // namespace

int available_processors() { return static_cast<int>(std::max<Index>(1, system_number("hw.ncpu"))); }

Index second_level_cache() { return system_number("hw.l2cachesize"); }

bool several_threads() { return true; }

void sleep_while(std::atomic<unsigned>& word, unsigned value) {
  if (word.load(std::memory_order_relaxed) == value) sched_yield();
}

void wake_all(std::atomic<unsigned>&) {}

Nanoseconds kept_from_running() { return 0; }

Look look() {
  Look seen;
  seen.time = clock_now();
  return seen;
}

}  // namespace fusedrnn
#endif
