#include "bindings/interrupt.h"

#include <atomic>

namespace fusedrnn {
namespace {

std::atomic<SignalClock::rep> interval{std::chrono::duration_cast<SignalClock::duration>(kSignalInterval).count()};

}  // namespace

SignalClock::duration signal_interval() { return SignalClock::duration(interval.load(std::memory_order_relaxed)); }

void set_signal_interval(double seconds) {
  const std::chrono::duration<double> wanted(seconds);
  interval.store(std::chrono::duration_cast<SignalClock::duration>(wanted).count(), std::memory_order_relaxed);
}

}  // namespace fusedrnn
