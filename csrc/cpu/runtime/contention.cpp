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
// Beside a busy process a team waits most of the time; beside the system's own work and light loads a tenth of it or
// less, in time slices of a few milliseconds. One thread takes twice the time of two. So a smaller team pays only where
// more than this share is lost, and over several slices: shrinking for a slice now and then took twice the time.
constexpr int kBearableShare = 3;  // one part in so many
constexpr Nanoseconds kTooMuch = 8 * kMillisecond;
// A wait for a team to disband that calls for a closer look, in so many of the next calls.
constexpr Nanoseconds kSlowEnd = 100 * kMicrosecond;
constexpr int kCarefulCalls = 16;

// The system counts processor time in hundredths of a second: between two looks at it there should be a few of them.
constexpr Nanoseconds kBetweenLooks = 50 * kMillisecond;
// Teams are tried again once a look finds room. Where the system tells nothing they stay smaller for so many times what
// was lost, so that trying costs a small part of the time. Either period doubles, up to the longest, while trials come
// to nothing.
constexpr int kPatience = 16;
constexpr Nanoseconds kLongestPeriod = 500 * kMillisecond;
// After this long teams are tried again although no look has found a free processor.
constexpr Nanoseconds kLongestWithoutTrial = 3000 * kMillisecond;
// The part of a processor that must be idle for it to count as free: the count is coarse, and the system takes some.
constexpr double kNearlyFree = 0.7;

// Where a smaller team has no processors of its own either, calls longer than a few time slices run on whole teams: the
// more threads, the larger their share. It has none where it gets less than this part of them.
constexpr double kLongCycles = 4e7;
constexpr double kOwn = 0.85;

class Contention {
 public:
  // Ordinarily this is one load.
  bool any() const { return until_.load(std::memory_order_relaxed) != 0; }

  // A thread of a team lost so much of the last `span`.
  void kept(Nanoseconds lost, Nanoseconds span) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return;  // another thread is telling
    const int asked = asked_.load(std::memory_order_relaxed);
    if (limit_ > 0 && asked > limit_) return;  // a larger team: it says nothing of this size
    const Nanoseconds now = clock_now();
    // The bearable share is that of the time in which something was lost: a long call loses some milliseconds here and
    // there, and tells of them all at once.
    const Nanoseconds since = now - noted_, recent = std::min(since, span);
    lost_ = std::max<Nanoseconds>(0, lost_ - (since - recent) / kBearableShare);
    lost_ = std::max<Nanoseconds>(0, lost_ + lost - recent / kBearableShare);
    noted_ = now;
    if (lost_ < kTooMuch) return;
    lost = std::exchange(lost_, 0);
    crowded_ = false;
    limit_ = std::max(1, (limit_ > 0 ? std::min(limit_, asked) : asked) / 2);
    looked_ = look();
    first_look_ = now;
    const Nanoseconds least = looked_.known ? kBetweenLooks : kPatience * lost;
    const bool in_vain = now - tried_ < 4 * period_;
    period_ = std::min(std::max(in_vain ? 2 * period_ : 0, least), kLongestPeriod);
    until_.store(now + period_, std::memory_order_relaxed);
  }

  int limit(int allowed, bool is_long) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return is_long ? allowed : 1;  // another thread is telling, or was when a fork left it behind
    const Nanoseconds until = until_.load(std::memory_order_relaxed);
    if (until == 0) return allowed;
    if (clock_now() >= until) try_again(allowed);
    return limit_ == 0 || (is_long && crowded_) ? allowed : std::min(limit_, allowed);
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
  bool crowded_ = false;               // even teams of that size get less than as many processors
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
      crowded_ = crowded_ || free < kOwn * limit_;
      const int room = static_cast<int>(free + 1 - kNearlyFree);
      looked_ = now;
      if (room <= limit_) return until_.store(now.time + kBetweenLooks, std::memory_order_relaxed);
      limit_ = room;
    } else {
      limit_ *= 2;
    }
    looked_ = now;
    crowded_ = false;
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
  const int threads = contention.any() ? contention.limit(allowed, cycles >= kLongCycles) : allowed;
  contention.started(threads);
  return threads;
}

bool teams_are_whole() { return !contention.any(); }

void others_slept() {
  // What came before the first look says nothing of a team.
  thread_local Nanoseconds before = kept_from_running(), looked = clock_now();
  const Nanoseconds now = kept_from_running(), time = clock_now();
  // What kept the thread from other work, between teams, says nothing of a team either.
  const Nanoseconds span = std::min(time - looked, contention.since_start());
  const Nanoseconds lost = std::min(now - before, span);
  before = now;
  looked = time;
  if (lost >= kKept && !always.load(std::memory_order_relaxed)) contention.kept(lost, span);
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
