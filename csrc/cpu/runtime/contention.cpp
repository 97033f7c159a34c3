#include "cpu/runtime/contention.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>

#include "cpu/platform/system.h"

namespace fusedrnn {
namespace {

// An even team's slack and the time a sleeper needs to wake; far below a scheduler's time slice.
constexpr Nanoseconds kLongestSpin = 50 * kMicrosecond;
// With more threads than processors somebody else needs the processor now.
constexpr Nanoseconds kSpinOversubscribed = kMicrosecond;

// A thread that was ready to run and did not for so long was kept from it by other work.
constexpr Nanoseconds kKept = 500 * kMicrosecond;
// Beside a busy process a team is kept for a third of the time or more, beside the system's own work for a few
// hundredths, in time slices of a few milliseconds. So it is too much where more than this share is lost, and over
// several slices: a smaller team for the sake of a slice now and then took twice the time.
constexpr int kBearableShare = 4;  // one part in so many
constexpr Nanoseconds kTooMuch = 8 * kMillisecond;
// Waiting for a team to disband that calls for a closer look, in so many of the next calls.
constexpr Nanoseconds kSlowEnd = 100 * kMicrosecond;
constexpr int kCarefulCalls = 16;

// Smaller teams for so many times what was lost, so that trying costs a small part of the time; within these bounds.
constexpr int kPatience = 16;
constexpr Nanoseconds kShortestPeriod = 10 * kMillisecond, kLongestPeriod = 1000 * kMillisecond;
// The system counts processor time in hundredths of a second: between two looks at it there should be a few of them.
constexpr Nanoseconds kBetweenLooks = 50 * kMillisecond;
// A look that finds no free processor is not believed for ever.
constexpr Nanoseconds kLongestWithoutTrial = 3000 * kMillisecond;
// A whole thread's worth of idle time, less what the count and the system itself take.
constexpr double kNearlyFree = 0.7;

// Calls longer than a few time slices run on whole teams even so: while one thread is kept from running the others
// sleep, and with as many other processes as processors one thread alone has half of one.
constexpr double kLongCycles = 4e7;

class Contention {
 public:
  // Ordinarily this is one load.
  bool any() const { return until_.load(std::memory_order_relaxed) != 0; }

  void kept(Nanoseconds lost) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return;  // somebody else tells
    const Nanoseconds now = clock_now();
    const bool limited = now < until_.load(std::memory_order_relaxed);
    if (!limited) {
      lost_ = std::max<Nanoseconds>(0, lost_ - (now - noted_) / kBearableShare) + lost;
      noted_ = now;
      if (lost_ < kTooMuch) return;
      lost = std::exchange(lost_, 0);
      const int asked = asked_.load(std::memory_order_relaxed);
      limit_ = std::max(1, (limit_ > 0 ? std::min(limit_, asked) : asked) / 2);
      // Again, soon after a trial: the trials become rarer.
      period_ = now - tried_ < 4 * period_ ? 2 * period_ : 0;
      looked_ = look();
      first_look_ = now;
    }
    period_ = std::clamp(std::max(period_, kPatience * lost), kShortestPeriod, kLongestPeriod);
    until_.store(std::max(until_.load(std::memory_order_relaxed), now + period_), std::memory_order_relaxed);
  }

  int limit(int allowed) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return 1;  // another thread is about to tell; or one that a fork left behind was
    const Nanoseconds until = until_.load(std::memory_order_relaxed);
    if (until == 0) return allowed;
    if (clock_now() >= until) try_again(allowed);
    return limit_ > 0 ? std::min(limit_, allowed) : allowed;
  }

  // The team that is about to start, which may be kept waiting.
  void started(int threads) {
    asked_.store(threads, std::memory_order_relaxed);
    started_.store(clock_now(), std::memory_order_relaxed);
  }
  Nanoseconds since_start() const { return clock_now() - started_.load(std::memory_order_relaxed); }

 private:
  std::mutex mutex_;
  std::atomic<Nanoseconds> until_{0};  // nothing is tried before; 0 while nobody waits
  int limit_ = 0;                      // threads of a team, 0 for no limit
  std::atomic<int> asked_{1};
  std::atomic<Nanoseconds> started_{0};
  Nanoseconds lost_ = 0, noted_ = 0;  // lost beyond the bearable share, up to that time
  Nanoseconds period_ = 0, tried_ = 0, first_look_ = 0;
  Look looked_;

  // As many threads as there were processors free, or used by this process.
  void try_again(int allowed) {
    const Look now = look();
    const Nanoseconds time = now.time - looked_.time;
    if (now.known && looked_.known && now.time - first_look_ < kLongestWithoutTrial) {
      if (time < kBetweenLooks) return until_.store(looked_.time + kBetweenLooks, std::memory_order_relaxed);
      const double free = static_cast<double>(now.idle - looked_.idle + now.ours - looked_.ours) / time;
      const int room = static_cast<int>(free + 1 - kNearlyFree);
      looked_ = now;
      if (room <= limit_) return until_.store(now.time + kBetweenLooks, std::memory_order_relaxed);
      limit_ = room;
    } else {
      limit_ *= 2;
    }
    looked_ = now;
    first_look_ = tried_ = now.time;
    if (limit_ >= allowed) {
      limit_ = 0;
      until_.store(0, std::memory_order_relaxed);
    } else {
      until_.store(now.time + std::max(period_, kBetweenLooks), std::memory_order_relaxed);
    }
  }
};

Contention contention;
std::atomic<bool> always{false}, oversubscribed{false};
std::atomic<int> careful{0};

}  // namespace

Nanoseconds longest_spin() {
  return oversubscribed.load(std::memory_order_relaxed) ? kSpinOversubscribed : kLongestSpin;
}

int team_size(int allowed, double cycles) {
  if (allowed == 1 || always.load(std::memory_order_relaxed)) return allowed;
  const int threads = contention.any() && cycles < kLongCycles ? contention.limit(allowed) : allowed;
  contention.started(threads);
  return threads;
}

bool teams_are_whole() { return !contention.any(); }

void others_slept() {
  thread_local Nanoseconds before = kept_from_running();  // what came before the first look says nothing of a team
  const Nanoseconds now = kept_from_running();
  // What kept the thread from other work, between teams, says nothing of a team either.
  const Nanoseconds lost = std::min(now - before, contention.since_start());
  before = now;
  if (lost >= kKept) contention.kept(lost);
}

bool meets_at_end() {
  if (contention.any()) return true;
  const int left = careful.load(std::memory_order_relaxed);
  if (left > 0) careful.store(left - 1, std::memory_order_relaxed);
  return left > 0;
}

void waited_at_end(Nanoseconds time) {
  if (time > kSlowEnd) careful.store(kCarefulCalls, std::memory_order_relaxed);
}

void set_team_rule(bool always_whole, int threads, int processors) {
  always.store(always_whole, std::memory_order_relaxed);
  oversubscribed.store(threads > processors, std::memory_order_relaxed);
}

}  // namespace fusedrnn
