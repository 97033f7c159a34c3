#include "cpu/runtime/barrier.h"

#include <sched.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <climits>

#include "cpu/runtime/contention.h"

namespace fusedrnn {
namespace {

constexpr unsigned kSleepers = 1, kRound = 2;
constexpr int kSpinsBetweenLooks = 32;  // at the clock

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void sleep_while(std::atomic<unsigned>& word, unsigned value) {
#if defined(__linux__)
  static_assert(sizeof word == sizeof(unsigned), "the kernel looks at the word itself");
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word.load(std::memory_order_relaxed) == value) sched_yield();
#endif
}

void wake_all(std::atomic<unsigned>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  static_cast<void>(word);
#endif
}

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
