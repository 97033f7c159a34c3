#include "cpu/layers/rounding.h"

#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/parallel.h"

namespace fusedrnn {
namespace {

// Elements that one thread rounds sooner than a team is started, and that a thread rounds in a cycle, about.
constexpr Index kShort = 64 << 10;
constexpr double kElementsOfACycle = 2;

}  // namespace

void round_sums(const float* from, Bfloat16* to, Index count, bool adding) {
  const auto round = kernels<Bfloat16>().round;
  if (count <= kShort) return round(from, to, count, adding);
  const int threads = team_size(num_threads(), static_cast<double>(count) / kElementsOfACycle);
  parallel(threads, [&](int thread, int given) {
    const Index first = count * thread / given, last = count * (thread + 1) / given;
    round(from + first, to + first, last - first, adding);
  });
}

}  // namespace fusedrnn
