// What is asked of the operating system: by linux.cpp there, by macos.cpp on macOS.
#pragma once
#include <atomic>

#include "common/arguments.h"
#include "cpu/platform/clock.h"

namespace fusedrnn {

// Processors that this process may use, by affinity and by the time that its control group grants; at least 1.
int available_processors();
// Bytes of second-level cache that a core has to itself, or 0 where that cannot be told.
Index second_level_cache();
// Whether this process has more threads than the one that asks, or that cannot be told.
bool several_threads();

// Sleeps while the word has the value, until somebody wakes those who sleep on it; may return early.
void sleep_while(std::atomic<unsigned>& word, unsigned value);
void wake_all(std::atomic<unsigned>& word);

// Time that the calling thread was ready to run and did not; 0 where that is not counted.
Nanoseconds kept_from_running();

// What the processors this process may use have done so far.
struct Look {
  Nanoseconds time = 0, idle = 0, ours = 0;
  bool known = false;  // else idle and ours say nothing
};
Look look();

}  // namespace fusedrnn
