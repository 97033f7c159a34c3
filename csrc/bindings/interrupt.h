// Ctrl-C during a long call: the calling thread looks for signals between chunks of time.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>

#include "bindings/gil.h"
#include "cpu/runtime/parallel.h"

namespace fusedrnn {

// Multiply-adds that take one thread some ten microseconds. A step of fewer keeps the GIL: releasing it would take
// longer than other threads could use it.
constexpr double kShortStep = 1 << 20;

// Python's signals are looked for at most this often: a look takes the GIL.
using SignalClock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kSignalInterval{50};
SignalClock::duration signal_interval();
// For tests, whose calls could otherwise end before the first look.
void set_signal_interval(double seconds);

// Runs work(interrupt) -> bool without the GIL; where it returns false, raises what the signal handler raised.
template <class Work>
void run_without_gil(const Work& work) {
  SignalClock::time_point last = SignalClock::now();
  const auto asked = [](void* context) {
    auto& before = *static_cast<SignalClock::time_point*>(context);
    const SignalClock::time_point now = SignalClock::now();
    if (now - before < signal_interval() || interpreter_ends()) return false;
    before = now;
    const pybind11::gil_scoped_acquire held;
    return PyErr_CheckSignals() != 0;
  };
  bool finished;
  {
    const GilReleased released;
    finished = work(Interrupt{asked, &last});
  }
  if (!finished) throw pybind11::error_already_set();
}

}  // namespace fusedrnn
