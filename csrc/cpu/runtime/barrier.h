// Where the threads of a team wait for each other.
#pragma once
#include <atomic>

namespace fusedrnn {

// Counts arrivals. A waiter spins for as long as a team with processors of its own takes, then sleeps: on a busy
// processor the late thread may need the waiter's place.
class Barrier {
 public:
  Barrier() = default;
  // Counts its rounds from another even number, for a test of the overflow.
  explicit Barrier(unsigned first) : round_(first) {}
  // Returns once `threads` threads have called it.
  void wait(int threads);

 private:
  bool passed(unsigned round) const;
  bool spin(unsigned round) const;
  void sleep(unsigned round);

  alignas(64) std::atomic<int> arrived_{0};
  // Counts in twos, and is odd where somebody sleeps. It may wrap, as a stepper takes billions of steps: nobody waits
  // for so many rounds.
  alignas(64) std::atomic<unsigned> round_{0};
};

}  // namespace fusedrnn
