// A function that is no recurrence as a call of the engine: a team, its barrier, and a stop.
#pragma once
#include "cpu/runtime/worker.h"

namespace fusedrnn {

// Runs kernel(arguments, worker) on at most `threads` threads; false when interrupted.
template <class Arguments>
bool run_operation(const Arguments& arguments, int threads, const Interrupt& interrupt,
                   void (*kernel)(const Arguments&, Worker&)) {
  struct Context {
    const Arguments& arguments;
    const Interrupt& interrupt;
    void (*kernel)(const Arguments&, Worker&);
    Group group;
    std::atomic<bool> stop{false};
  } context{arguments, interrupt, kernel, {}, {}};
  parallel(
      threads,
      [](void* pointer, int thread, int given) {
        Context& c = *static_cast<Context*>(pointer);
        Interrupt own = c.interrupt;
        Worker worker = {thread, Split{given, 1}, &c.group, nullptr, thread == 0 && own.asked ? &own : nullptr,
                         &c.stop};
        c.kernel(c.arguments, worker);
      },
      &context);
  return !context.stop.load();
}

}  // namespace fusedrnn
