// The affine grid: grid(b, i, j) = theta_b (x_j, y_i, 1), and dtheta_b = the sum over i and j of dgrid(b, i, j) times
// (x_j, y_i, 1). A line is summed in sixteen partial results, the lines of an image in their order.
#pragma once
#include "cpu/runtime/worker.h"
#include "cpu/simd/rows.h"
#include "ops/affine_grid/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class AffineGrid {
  using V = Vec<Real>;
  static constexpr Index kVectors = kBlock / V::lanes;
  static constexpr Index kTheta = 6;

 public:
  AffineGrid(const AffineGridArguments<Real>& arguments, Worker& worker) : a(arguments), w(worker) {}

  void forward() {
    each_line([this](Index line) {
      const Real* theta = a.theta + line / a.height * kTheta;
      const Real y = a.y[line % a.height];
      // x and y alternate in a line of the grid.
      Real slope[kBlock], offset[kBlock];
      for (Index k = 0; k < kBlock; ++k) {
        const Real* row = theta + k % 2 * 3;
        slope[k] = row[0];
        offset[k] = row[1] * y + row[2];
      }
      Real* grid = a.grid + line * 2 * a.width;
      each_vector(a.x, 2 * a.width, Real(0), [&](Index k, Index first, int count, V x) {
        fma(V::load(slope + k * V::lanes), x, V::load(offset + k * V::lanes)).store_partial(grid + first, count);
      });
    });
  }

  void backward() {
    each_line([this](Index line) { sum_line(line); });
    w.meet();
    const Range mine = part_of(a.images, w.thread, w.threads());
    for (Index b = mine.first; b < mine.last; ++b)
      for (Index k = 0; k < kTheta; ++k) {
        Real sum = 0;
        for (Index i = 0; i < a.height; ++i) sum += a.partial[(b * a.height + i) * kTheta + k];
        a.dtheta[b * kTheta + k] = sum;
      }
  }

 private:
  const AffineGridArguments<Real>& a;
  Worker& w;

  template <class Line>
  void each_line(const Line& line) {
    const Range mine = part_of(a.images * a.height, w.thread, w.threads());
    for (Index n = mine.first; n < mine.last && !w.skip(a.width); ++n) line(n);
  }

  void sum_line(Index line) {
    V by_x[kVectors], plain[kVectors];
    for (Index k = 0; k < kVectors; ++k) by_x[k] = plain[k] = V(Real(0));
    each_vector(a.dgrid + line * 2 * a.width, 2 * a.width, Real(0), [&](Index k, Index first, int count, V gradient) {
      by_x[k] = fma(gradient, V::load_partial(a.x + first, count), by_x[k]);
      plain[k] += gradient;
    });
    Real lanes_by_x[kBlock], lanes[kBlock];
    for (Index k = 0; k < kVectors; ++k) {
      by_x[k].store(lanes_by_x + k * V::lanes);
      plain[k].store(lanes + k * V::lanes);
    }
    const Real y = a.y[line % a.height];
    for (Index row = 0; row < 2; ++row) {
      Real sum_by_x = 0, sum = 0;
      for (Index k = row; k < kBlock; k += 2) {
        sum_by_x += lanes_by_x[k];
        sum += lanes[k];
      }
      Real* partial = a.partial + line * kTheta + row * 3;
      partial[0] = sum_by_x;
      partial[1] = sum * y;
      partial[2] = sum;
    }
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
