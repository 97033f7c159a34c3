// Threads that meet at a barrier again and again: nobody leaves before all have come, whoever is late, spins or sleeps.
// Ends with 0 where that holds. Compiled with the barrier's own source, and under ThreadSanitizer where there is one.
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/runtime/barrier.h"
#include "cpu/runtime/contention.h"

using fusedrnn::Barrier;

namespace {

constexpr int kRounds = 300;

// Plain integers: what orders them is the barrier alone.
struct Meeting {
  Barrier barrier;
  std::vector<int> arrived;
  bool failed = false;
  Meeting(int threads, unsigned first) : barrier(first), arrived(threads, 0) {}
};

void meet(Meeting& meeting, int thread, bool late) {
  const int threads = static_cast<int>(meeting.arrived.size());
  bool failed = false;
  for (int round = 1; round <= kRounds; ++round) {
    // Somebody else is late each time, for longer than the others spin.
    if (late && round % 20 == 0 && round / 20 % threads == thread)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    meeting.arrived[thread] = round;
    meeting.barrier.wait(threads);
    for (int other = 0; other < threads; ++other) failed |= meeting.arrived[other] != round;
    meeting.barrier.wait(threads);
  }
  if (failed) {
    std::fprintf(stderr, "thread %d left too early\n", thread);
    meeting.failed = true;
  }
}

bool holds(int threads, unsigned first, bool late) {
  Meeting meeting(threads, first);
  std::vector<std::thread> team;
  for (int thread = 1; thread < threads; ++thread) team.emplace_back([&, thread] { meet(meeting, thread, late); });
  meet(meeting, 0, late);
  for (std::thread& one : team) one.join();
  return !meeting.failed;
}

}  // namespace

int main() {
  bool fine = true;
  for (const bool oversubscribed : {false, true}) {
    fusedrnn::set_team_rule(true, oversubscribed ? 2 : 1, 1);
    for (const int threads : {1, 2, 3, 7})
      // Rounds count in twos: the second overflows amid the test.
      for (const unsigned first : {0u, 0u - static_cast<unsigned>(kRounds)})
        for (const bool late : {false, true}) fine &= holds(threads, first & ~1u, late);
  }
  return fine ? 0 : 1;
}
