#if defined(__linux__)
#include <dirent.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>

#include "cpu/platform/system.h"

namespace fusedrnn {
namespace {

// CPUs' worth of time the control group grants, or 0 where it sets no limit.
int control_group_processors() {
  double quota = 0, period = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0;
    std::fclose(file);
  } else {
    std::FILE* quota_file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
    std::FILE* period_file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    if (!quota_file || std::fscanf(quota_file, "%lf", &quota) != 1) quota = 0;
    if (!period_file || std::fscanf(period_file, "%lf", &period) != 1) quota = 0;
    if (quota_file) std::fclose(quota_file);
    if (period_file) std::fclose(period_file);
  }
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : 0;
}

}  // namespace

int available_processors() {
  cpu_set_t set;
  // Fails on a machine with more processors than a cpu_set_t holds.
  int count =
      sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const int granted = control_group_processors();
  if (granted > 0) count = std::min(count, granted);
  return std::max(1, count);
}

Index second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return std::max(0L, sysconf(_SC_LEVEL2_CACHE_SIZE));
#else
  return 0;
#endif
}

bool several_threads() {
  DIR* const tasks = opendir("/proc/self/task");
  if (!tasks) return true;
  int count = 0;
  while (const dirent* const entry = readdir(tasks)) count += entry->d_name[0] != '.';
  closedir(tasks);
  return count != 1;
}

void sleep_while(std::atomic<unsigned>& word, unsigned value) {
  static_assert(sizeof word == sizeof(unsigned), "the kernel looks at the word itself");
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<unsigned>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

Nanoseconds kept_from_running() {
  if (std::FILE* const file = std::fopen("/proc/thread-self/schedstat", "r")) {
    long long ran = 0, waited = 0;
    const int read = std::fscanf(file, "%lld %lld", &ran, &waited);
    std::fclose(file);
    if (read == 2 && ran > 0) return waited;
  }
  rusage usage = {};  // where that is not counted: a millisecond each time it was made to stop
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw * kMillisecond : 0;
}

Look look() {
  Look seen;
  seen.time = clock_now();
  timespec used = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  seen.ours = used.tv_sec * 1000 * kMillisecond + used.tv_nsec;
  cpu_set_t allowed;
  std::FILE* const file = std::fopen("/proc/stat", "r");
  if (!file) return seen;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    char line[512];
    int processor = 0;
    long long idle = 0, waiting = 0;
    while (std::fgets(line, sizeof line, file) && line[0] == 'c') {
      if (line[3] == ' ') continue;  // the sum over all
      if (std::sscanf(line, "cpu%d %*d %*d %*d %lld %lld", &processor, &idle, &waiting) != 3) break;
      seen.known = true;
      if (processor < CPU_SETSIZE && CPU_ISSET(processor, &allowed)) seen.idle += (idle + waiting) * 10 * kMillisecond;
    }
  }
  std::fclose(file);
  return seen;
}

}  // namespace fusedrnn
#endif
