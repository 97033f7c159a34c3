#include "cpu/runtime/parallel.h"

#include <dirent.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "cpu/runtime/contention.h"
#include "cpu/simd/float_state.h"

namespace fusedrnn {
namespace {

// CPUs' worth of time the control group grants, or 0 where it sets no limit.
int control_group_threads() {
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

// First number of OMP_NUM_THREADS, or 0 where it is unset or none. OpenMP's own count is not asked: other libraries set
// it for the whole process.
int environment_threads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const long threads = text ? std::strtol(text, nullptr, 10) : 0;
  return static_cast<int>(std::clamp(threads, 0L, 1L << 16));
}

// Whether this process has more threads than the one that asks, or that cannot be told.
bool several_threads() {
#if defined(__linux__)
  if (DIR* const tasks = opendir("/proc/self/task")) {
    int count = 0;
    while (const dirent* const entry = readdir(tasks)) count += entry->d_name[0] != '.';
    closedir(tasks);
    return count != 1;
  }
#endif
  return true;
}

std::atomic<int> most{0};    // threads of a call by default
std::atomic<int> chosen{0};  // what was set instead, or 0
std::atomic<bool> worker_process{false};
std::atomic<bool> lone{false};

// The OpenMP runtime's threads do not survive a fork, and asking the child's copy for a team would wait for them
// forever. Whether the parent had such threads, ours or another library's, cannot be asked: the child of a process with
// any other thread works on its own thread alone, and so do its children.
// It is enough that there was one at an earlier fork: OpenBLAS ends its threads then, and starts them again later, and
// the workers of a pool must not differ.
std::atomic<bool> had_threads{false};
std::atomic<unsigned> forks{0};
void before_fork() {
  if (several_threads()) had_threads.store(true, std::memory_order_relaxed);
}
void after_fork() {
  if (had_threads.load(std::memory_order_relaxed)) lone.store(true, std::memory_order_relaxed);
  forks.fetch_add(1, std::memory_order_relaxed);
  set_worker_process();
}
[[maybe_unused]] const int fork_handler = pthread_atfork(before_fork, nullptr, after_fork);

}  // namespace

void parallel(int threads, void (*body)(const void*, int, int), const void* context) {
  if (threads <= 1 || lone.load(std::memory_order_relaxed)) {
    const FloatState ours;
    body(context, 0, 1);
    return;
  }
  const bool meet = meets_at_end();
  Barrier end;
  Nanoseconds finished = 0;
#pragma omp parallel num_threads(threads)
  {
    const FloatState ours;
    body(context, omp_get_thread_num(), omp_get_num_threads());
    if (meet) end.wait(omp_get_num_threads());
    if (omp_get_thread_num() == 0) finished = clock_now();
  }
  waited_at_end(clock_now() - finished);
}

unsigned forks_of_process() { return forks.load(std::memory_order_relaxed); }

int available_threads() {
  cpu_set_t set;
  int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : omp_get_num_procs();
  const int granted = control_group_threads();
  if (granted > 0) count = std::min(count, granted);
  return std::max(1, count);
}

int num_threads() {
  if (lone.load(std::memory_order_relaxed)) return 1;
  if (const int set = chosen.load(std::memory_order_relaxed)) return set;
  int threads = most.load(std::memory_order_relaxed);
  if (threads == 0) {
    threads = available_threads();
    if (const int wanted = environment_threads()) threads = std::min(threads, wanted);
    most.store(threads, std::memory_order_relaxed);
  }
  return worker_process.load(std::memory_order_relaxed) ? std::min(threads, omp_get_max_threads()) : threads;
}

void set_num_threads(int threads, bool oversubscribe, bool always) {
  const int available = available_threads();
  if (!oversubscribe) threads = std::min(threads, available);
  chosen.store(threads, std::memory_order_relaxed);
  set_team_rule(always, threads, available);
}

void set_worker_process() {
  worker_process.store(true, std::memory_order_relaxed);
  if (const int set = chosen.exchange(0, std::memory_order_relaxed)) most.store(set, std::memory_order_relaxed);
}

}  // namespace fusedrnn
