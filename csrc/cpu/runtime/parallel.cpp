#include "cpu/runtime/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <cstdlib>

#include "cpu/platform/system.h"
#include "cpu/runtime/contention.h"
#include "cpu/simd/float_state.h"

namespace fusedrnn {
namespace {

// First number of OMP_NUM_THREADS, or 0 where it is unset or none. OpenMP's own count is not asked: other libraries set
// it for the whole process.
int environment_threads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const long threads = text ? std::strtol(text, nullptr, 10) : 0;
  return static_cast<int>(std::clamp(threads, 0L, 1L << 16));
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

int num_threads() {
  if (lone.load(std::memory_order_relaxed)) return 1;
  if (const int set = chosen.load(std::memory_order_relaxed)) return set;
  int threads = most.load(std::memory_order_relaxed);
  if (threads == 0) {
    threads = available_processors();
    if (const int wanted = environment_threads()) threads = std::min(threads, wanted);
    most.store(threads, std::memory_order_relaxed);
  }
  return worker_process.load(std::memory_order_relaxed) ? std::min(threads, omp_get_max_threads()) : threads;
}

void set_num_threads(int threads, bool oversubscribe, bool always) {
  const int available = available_processors();
  if (!oversubscribe) threads = std::min(threads, available);
  chosen.store(threads, std::memory_order_relaxed);
  set_team_rule(always, threads, available);
}

void set_worker_process() {
  worker_process.store(true, std::memory_order_relaxed);
  if (const int set = chosen.exchange(0, std::memory_order_relaxed)) most.store(set, std::memory_order_relaxed);
}

}  // namespace fusedrnn
