// Time as everything here counts it.
#pragma once
#include <chrono>
#include <cstdint>

namespace fusedrnn {

using Nanoseconds = std::int64_t;
constexpr Nanoseconds kMicrosecond = 1000, kMillisecond = 1000 * kMicrosecond;

inline Nanoseconds clock_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace fusedrnn
