// When teams become smaller, told by what a thread says it lost. Compiled with csrc/cpu/runtime/contention.cpp alone:
// what the operating system would say is said here. Ends with 0 where all holds. Nothing depends on how fast the
// machine is.
#include <chrono>
#include <cstdio>
#include <thread>

#include "cpu/platform/system.h"
#include "cpu/runtime/contention.h"

namespace fusedrnn {

Nanoseconds told = 0;  // of the time that this thread was kept from running

Nanoseconds kept_from_running() { return told; }
Look look() { return {}; }

namespace {

constexpr Nanoseconds kHour = 3600000 * kMillisecond;

int failures = 0;

void check(bool holds, const char* what) {
  if (!holds && ++failures) std::fprintf(stderr, "%s\n", what);
}

// A call of a team of two that takes so long at least and ends at a barrier, where its thread tells what it lost.
void call(int milliseconds, Nanoseconds lost) {
  team_size(2, 1e6);
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  told += lost;
  others_slept();
}

}  // namespace
}  // namespace fusedrnn

int main() {
  using namespace fusedrnn;
  call(1, 0);
  // A tenth of a long call, in one piece: more than the least that counts, and less than a third of the time.
  for (int round = 0; round < 4; ++round) call(120, 12 * kMillisecond);
  check(teams_are_whole(), "teams are smaller although a tenth of the time was lost");
  // All of the time, as far as it lies within the call.
  call(60, kHour);
  check(!teams_are_whole(), "teams are whole although all of the time was lost");
  return failures;
}
