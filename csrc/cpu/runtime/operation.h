// A function that is no recurrence as a call of the engine: a team, its barrier, and a stop.
#pragma once
#include "cpu/runtime/worker.h"

namespace fusedrnn {

// Runs kernel(arguments, worker) on at most `threads` threads; false when interrupted.
template <class Arguments>
bool run_operation(const Arguments& arguments, int threads, const Interrupt& interrupt,
                   void (*kernel)(const Arguments&, Worker&)) {
  Group group;
  std::atomic<bool> stop{false};
  parallel(threads, [&](int thread, int given) {
    const Interrupt* const asked = thread == 0 && interrupt.asked ? &interrupt : nullptr;
    Worker worker = {thread, Split{given, 1}, &group, nullptr, asked, &stop};
    kernel(arguments, worker);
  });
  return !stop.load();
}

}  // namespace fusedrnn
