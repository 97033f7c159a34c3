#include "cpu/runtime/barrier.h"

#include "cpu/platform/spin.h"
#include "cpu/platform/system.h"
#include "cpu/runtime/contention.h"

namespace fusedrnn {
namespace {

constexpr unsigned kSleepers = 1, kRound = 2;
constexpr int kSpinsBetweenLooks = 32;  // at the clock

}  // namespace

void Barrier::wait(int threads) {
  if (threads == 1) return;
  const unsigned round = round_.load(std::memory_order_relaxed) & ~kSleepers;
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) < threads - 1) {
    if (!spin(round)) sleep(round);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  if (round_.exchange(round + kRound, std::memory_order_acq_rel) & kSleepers) {
    wake_all(round_);
    others_slept();
  }
}

bool Barrier::passed(unsigned round) const { return (round_.load(std::memory_order_acquire) & ~kSleepers) != round; }

bool Barrier::spin(unsigned round) const {
  Nanoseconds until = 0;
  for (;;) {
    for (int i = 0; i < kSpinsBetweenLooks; ++i) {
      if (passed(round)) return true;
      relax();
    }
    const Nanoseconds now = clock_now();
    if (until == 0) until = now + longest_spin();
    if (now >= until) return false;
  }
}

void Barrier::sleep(unsigned round) {
  while (!passed(round)) {
    unsigned awake = round;
    // Either it is marked now, or it was, or the round is over.
    if (round_.compare_exchange_strong(awake, round | kSleepers, std::memory_order_acq_rel) ||
        awake == (round | kSleepers))
      sleep_while(round_, round | kSleepers);
  }
}

}  // namespace fusedrnn
