// Ctrl-C during a long call: the calling thread looks for signals between chunks of time.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>

#include "cpu/parallel.h"

namespace fusedrnn {

// Multiply-adds that one thread does in some ten microseconds: a step of fewer keeps the GIL, as letting other threads
// have it would take longer than it gives them.
constexpr double kShortStep = 1 << 20;

// Runs work(interrupt) -> bool without the GIL; where it returns false, raises what the signal handler raised.
template <class Work>
void run_without_gil(const Work& work) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point last = Clock::now();
  const auto asked = [](void* context) {
    auto& before = *static_cast<Clock::time_point*>(context);
    const Clock::time_point now = Clock::now();
    if (now - before < std::chrono::milliseconds(50)) return false;
    before = now;
    const pybind11::gil_scoped_acquire held;
    return PyErr_CheckSignals() != 0;
  };
  bool finished;
  {
    const pybind11::gil_scoped_release released;
    finished = work(Interrupt{asked, &last});
  }
  if (!finished) throw pybind11::error_already_set();
}

}  // namespace fusedrnn
