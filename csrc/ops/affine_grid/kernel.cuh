// The affine grid on a device; kernel.h beside this is the CPU's. A gradient is the sum of runs of pixels, one a block,
// in the order of the runs.
#pragma once
#include <algorithm>
#include <cmath>

#include "cuda/engine.h"
#include "cuda/runtime/arena.h"
#include "cuda/runtime/backend.h"
#include "ops/affine_grid/arguments.h"
#include "ops/affine_grid/middle.h"

namespace fusedrnn {
namespace {

constexpr Index kAffineRun = 4096;   // pixels
constexpr int kAffineThreads = 128;  // of a block: a power of 2
constexpr int kAffineNumbers = 6;    // of theta

template <class T>
struct AffineGridPoints {
  using A = Accumulator<T>;
  Index height, width;
  bool align_corners;
  const T* theta;
  T* grid;

  FUSEDRNN_HOST_DEVICE void operator()(Index b, Index i, Index j) const {
    const A x = middle<A>(j, width, align_corners), y = middle<A>(i, height, align_corners);
    for (int row = 0; row < 2; ++row) {
      const T* const t = theta + b * kAffineNumbers + row * 3;
      grid[((b * height + i) * width + j) * 2 + row] =
          narrow<T>(std::fma(widen(t[0]), x, widen(t[1]) * y + widen(t[2])));
    }
  }
};

template <class T>
struct AffineGridSums {
  using A = Accumulator<T>;
  Index height, width, runs;
  bool align_corners;
  const T* dgrid;
  A* partial;  // (images, runs, 6)

  FUSEDRNN_DEVICE void operator()(Block& block, Index index) const {
    A* const sums = static_cast<A*>(block.shared());  // (6, threads)
    const int threads = block.threads();
    block.each([&](int thread) { add_up(index / runs, index % runs * kAffineRun, thread, threads, sums); });
    for (int half = threads / 2; half > 0; half /= 2)
      block.each([&](int thread) {
        if (thread >= half) return;
        for (int k = 0; k < kAffineNumbers; ++k) sums[k * threads + thread] += sums[k * threads + thread + half];
      });
    block.each([&](int thread) {
      if (thread < kAffineNumbers) partial[index * kAffineNumbers + thread] = sums[thread * threads];
    });
  }

 private:
  FUSEDRNN_DEVICE void add_up(Index b, Index first, int thread, int threads, A* sums) const {
    const Index pixels = height * width, end = smaller(first + kAffineRun, pixels);
    A sum[kAffineNumbers] = {};
    for (Index p = first + thread; p < end; p += threads) {
      const A x = middle<A>(p % width, width, align_corners), y = middle<A>(p / width, height, align_corners);
      FUSEDRNN_UNROLL
      for (int row = 0; row < 2; ++row) {
        const A gradient = widen(dgrid[(b * pixels + p) * 2 + row]);
        sum[row * 3] += gradient * x;
        sum[row * 3 + 1] += gradient * y;
        sum[row * 3 + 2] += gradient;
      }
    }
    FUSEDRNN_UNROLL
    for (int k = 0; k < kAffineNumbers; ++k) sums[k * threads + thread] = sum[k];
  }
};

template <class T>
struct AffineGridTotal {
  using A = Accumulator<T>;
  Index runs;
  const A* partial;
  T* dtheta;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index b, Index k) const {
    double sum = 0;
    for (Index run = 0; run < runs; ++run) sum += double(partial[(b * runs + run) * kAffineNumbers + k]);
    dtheta[b * kAffineNumbers + k] = narrow<T>(static_cast<A>(sum));
  }
};

template <class T>
class AffineGrid {
  using A = Accumulator<T>;

 public:
  explicit AffineGrid(const AffineGridCall& affine)
      : call(affine), runs((affine.height * affine.width + kAffineRun - 1) / kAffineRun) {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void forward(const Place& place) {
    Backend backend(place, nullptr, false);
    backend.for_each(call.images, call.height, call.width,
                     AffineGridPoints<T>{call.height, call.width, call.align_corners, static_cast<const T*>(call.theta),
                                         static_cast<T*>(call.grid)});
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, nullptr, false);
    backend.for_each_block(call.images * runs, kAffineThreads, kAffineNumbers * kAffineThreads * sizeof(A),
                           AffineGridSums<T>{call.height, call.width, runs, call.align_corners,
                                             static_cast<const T*>(call.dgrid), partial});
    backend.for_each(1, call.images, kAffineNumbers, AffineGridTotal<T>{runs, partial, static_cast<T*>(call.dtheta)});
  }

 private:
  const AffineGridCall& call;
  const Index runs;
  A* partial;

  void lay_out(Arena& arena) { partial = arena.take<A>(call.dtheta ? call.images : 0, runs, kAffineNumbers); }
};

}  // namespace
}  // namespace fusedrnn
