// Threads: how many, and a team for one call.
#pragma once
#include <atomic>

#include "cpu/runtime/barrier.h"

namespace fusedrnn {

// Asked by the calling thread between chunks of time; true ends the call early.
struct Interrupt {
  bool (*asked)(void* context) = nullptr;
  void* context = nullptr;
};

// Threads that work on one direction together.
struct Group {
  Barrier barrier;
  // Written by the group's first thread before a barrier and read after it; two, because a fast thread may write the
  // next one while a slow one still reads this one.
  int stop[2] = {0, 0};
};

// Runs body(context, thread, threads) on `threads` threads of one OpenMP region, or fewer when OpenMP gives fewer.
void parallel(int threads, void (*body)(const void* context, int thread, int threads), const void* context);
// The same for anything that is called as body(thread, threads). The call ends before it does: nothing is copied.
template <class Body>
void parallel(int threads, const Body& body) {
  parallel(
      threads, [](const void* context, int thread, int given) { (*static_cast<const Body*>(context))(thread, given); },
      &body);
}

// Most threads a call may use: what was set, within what affinity and the control group allow.
int num_threads();
// Sets it; `oversubscribe` lifts the machine's limit, and `always` keeps teams from shrinking beside other work, for
// tests of the barrier and the split rule.
void set_num_threads(int threads, bool oversubscribe, bool always);
// From here on this is a process that another one made for its work: OpenMP's own count, which a library sets for a
// worker process, limits the threads until set_num_threads is called here.
void set_worker_process();
// How many forks lie between this process and the one that loaded the library.
unsigned forks_of_process();

}  // namespace fusedrnn
