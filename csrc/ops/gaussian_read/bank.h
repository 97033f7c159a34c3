// The filters of one row of the batch (Gregor et al. 2015): F(i, a) = exp(-(a - mu_i)^2 / (2 sigma^2)) / max(sum over
// a, 1e-8) for each axis, their products, and what their gradients say of the five numbers they are made from.
#pragma once
#include "cpu/runtime/worker.h"
#include "cpu/simd/rows.h"
#include "ops/gaussian_read/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// An element (i, k) of a left operand is at data[i * row + k * inner].
template <class Real>
struct Left {
  const Real* data;
  Index row, inner;
};

// out = left right, or added to it: `rows` x `inner` times `inner` x `columns`. Every element is one chain of fused
// multiply-adds over the inner dimension.
template <class Real, int kRows>
FUSEDRNN_INLINE void multiply_lines(Left<Real> left, const Real* right, Index inner, Index columns, Real* out,
                                    bool adding) {
  using V = Vec<Real>;
  for (Index j = 0; j < columns; j += V::lanes) {
    const int count = static_cast<int>(smaller(V::lanes, columns - j));
    V sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = adding ? V::load_partial(out + r * columns + j, count) : V(Real(0));
    for (Index k = 0; k < inner; ++k) {
      const V line = V::load_partial(right + k * columns + j, count);
      for (int r = 0; r < kRows; ++r) sum[r] = fma(V(left.data[r * left.row + k * left.inner]), line, sum[r]);
    }
    for (int r = 0; r < kRows; ++r) sum[r].store_partial(out + r * columns + j, count);
  }
}
template <class Real>
void multiply(Left<Real> left, const Real* right, Index rows, Index inner, Index columns, Real* out,
              bool adding = false) {
  constexpr int kRows = 4;
  Index i = 0;
  for (; i + kRows <= rows; i += kRows) {
    multiply_lines<Real, kRows>(left, right, inner, columns, out + i * columns, adding);
    left.data += kRows * left.row;
  }
  for (; i < rows; ++i) {
    multiply_lines<Real, 1>(left, right, inner, columns, out + i * columns, adding);
    left.data += left.row;
  }
}

template <class Real>
void transpose_matrix(const Real* from, Index rows, Index columns, Real* to) {
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
}

// One axis: filters (count, size) in `filter`. The five numbers and what follows from them are double, so that a filter
// has the error of its exponential alone.
template <class Real>
struct GaussianAxis {
  Index size, count;
  double center, delta, variance;
  Real* filter;

  double offset(Index i) const { return static_cast<double>(i) + 1 - static_cast<double>(count) / 2 - 0.5; }
  double mean(Index i) const { return center + offset(i) * delta; }
  // Of pixel a = 1 .. size, the square of its distance from a filter's mean, in variances.
  double squares(Index i, Index a) const {
    const double distance = static_cast<double>(a + 1) - mean(i);
    return distance * distance / variance;
  }

  void fill() const {
    using V = Vec<Real>;
    for (Index i = 0; i < count; ++i) {
      Real* line = filter + i * size;
      for (Index a = 0; a < size; ++a) line[a] = static_cast<Real>(-squares(i, a) / 2);
      Partials<Real> partial(Real(0));
      each_vector(line, size, -Real(__builtin_inf()), [&](Index k, Index first, int lanes, V value) {
        const V power = exp(value);
        partial.part[k] += power;
        power.store_partial(line + first, lanes);
      });
      const V divisor(bounded(partial.sum()));
      each_vector(line, size, Real(0), [&](Index, Index first, int lanes, V power) {
        (power / divisor).store_partial(line + first, lanes);
      });
    }
  }

  // The gradient by the filters, element (i, a) at data[i * row + a * inner]: adds to those by the center, by the
  // distance between the filters and by the logarithm of the variance.
  void add_gradient(Left<Real> gradient, double& by_center, double& by_delta, double& by_log_variance) const {
    for (Index i = 0; i < count; ++i) {
      const Real* line = filter + i * size;
      double along = 0, total = 0;
      for (Index a = 0; a < size; ++a) {
        along += double(gradient.data[i * gradient.row + a * gradient.inner]) * double(line[a]);
        total += double(line[a]);
      }
      // Where the sum of a line is bounded its filters come to less than 1, and the divisor is a constant.
      const double common = total < kBounded ? 0 : along;
      double by_mean = 0;
      for (Index a = 0; a < size; ++a) {
        const double by_exponent =
            (double(gradient.data[i * gradient.row + a * gradient.inner]) - common) * double(line[a]);
        by_mean += by_exponent * (static_cast<double>(a + 1) - mean(i)) / variance;
        by_log_variance += by_exponent * (line[a] == 0 ? 0 : squares(i, a) / 2);
      }
      by_center += by_mean;
      by_delta += by_mean * offset(i);
    }
  }

 private:
  static constexpr Real kLeast = Real(1e-8);
  static constexpr double kBounded = 1 - 1e-4;
  static Real bounded(Real sum) { return sum > kLeast || sum != sum ? sum : kLeast; }
};

// Both axes of a row, and what they are made from: (center of x, center of y, log variance, log distance, log factor),
// the centers between -1 and 1 in the image, the distance as a share of the widest there is.
template <class Real>
class GaussianBank {
 public:
  GaussianAxis<Real> x, y;
  double factor;

  GaussianBank(const GaussianArguments<Real>& a, Index row, Real* x_filters, Real* y_filters)
      : larger_(larger(a.height, a.width)) {
    const Real* p = a.attention + row * kNumbers;
    const double variance = __builtin_exp(double(p[2]));
    const double delta = a.count > 1 ? double(larger_ - 1) / double(a.count - 1) * __builtin_exp(double(p[3])) : 0;
    factor = __builtin_exp(double(p[4]));
    x = {a.width, a.count, double(a.width + 1) * (double(p[0]) + 1) / 2, delta, variance, x_filters};
    y = {a.height, a.count, double(a.height + 1) * (double(p[1]) + 1) / 2, delta, variance, y_filters};
    x.fill();
    y.fill();
  }

  // dattention of the row from the gradients of the filters and of the factor's logarithm.
  void write_gradient(Left<Real> dx, Left<Real> dy, double by_log_factor, Real* dattention) const {
    double center_x = 0, center_y = 0, delta = 0, log_variance = 0;
    x.add_gradient(dx, center_x, delta, log_variance);
    y.add_gradient(dy, center_y, delta, log_variance);
    dattention[0] = static_cast<Real>(center_x * double(x.size + 1) / 2);
    dattention[1] = static_cast<Real>(center_y * double(y.size + 1) / 2);
    dattention[2] = static_cast<Real>(log_variance);
    dattention[3] = static_cast<Real>(x.count > 1 ? delta * x.delta : 0.0);
    dattention[4] = static_cast<Real>(by_log_factor);
  }

  static constexpr Index kNumbers = 5;

 private:
  Index larger_;
};

// A thread's matrices, cut from its workspace.
template <class Real>
struct GaussianMatrices {
  Real *x, *x_transposed, *y;      // filters (N, W), (W, N), (N, H)
  Real *lines, *more_lines;        // (N, W)
  Real* columns;                   // (H, N)
  Real *dx, *dy;                   // of the filters: (N, W); (H, N), transposed
  Real *patch, *patch_transposed;  // (N, N)

  // The matrix of a channel's patch times a number, and its transpose.
  void set_patch(const Real* from, double factor, Index count) const {
    for (Index i = 0; i < count * count; ++i) patch[i] = static_cast<Real>(double(from[i]) * factor);
    transpose_matrix(patch, count, count, patch_transposed);
  }

  GaussianMatrices(const GaussianArguments<Real>& a, int thread) {
    Real* next = a.workspace + thread * a.workspace_of_thread;
    const auto take = [&next](Index size) {
      Real* const taken = next;
      next += size;
      return taken;
    };
    const Index wide = a.count * a.width, high = a.count * a.height, small = a.count * a.count;
    x = take(wide), x_transposed = take(wide), lines = take(wide), more_lines = take(wide), dx = take(wide);
    y = take(high), columns = take(high), dy = take(high);
    patch = take(small), patch_transposed = take(small);
  }
};

// What reading and writing have in common: a row of the batch is one thread's, its channels follow each other.
template <class Real>
class GaussianRows {
 public:
  GaussianRows(const GaussianArguments<Real>& arguments, Worker& worker)
      : m(arguments, worker.thread), shape(arguments), w(worker) {}

 protected:
  GaussianMatrices<Real> m;

  // Calls row(n, bank) for this thread's rows, with F_X, its transpose and F_Y in the matrices.
  template <class Row>
  void each_row(const Row& row) {
    const Index work = shape.channels * shape.count * shape.height * shape.width / kBlock;
    const Range mine = part_of(shape.rows, w.thread, w.threads());
    for (Index n = mine.first; n < mine.last && !w.skip(work); ++n) {
      const GaussianBank<Real> bank(shape, n, m.x, m.y);
      transpose_matrix(m.x, shape.count, shape.width, m.x_transposed);
      row(n, bank);
    }
  }
  void clear_filter_gradients() const {
    for (Index i = 0; i < shape.count * shape.width; ++i) m.dx[i] = 0;
    for (Index i = 0; i < shape.count * shape.height; ++i) m.dy[i] = 0;
  }
  // A patch and an image are linear in F_X, so the sum of dF_X F_X is what the factor gets.
  void write_gradient(const GaussianBank<Real>& bank, Index n, double sign) const {
    double by_factor = 0;
    for (Index i = 0; i < shape.count * shape.width; ++i) by_factor += double(m.dx[i]) * double(m.x[i]);
    bank.write_gradient({m.dx, shape.width, 1}, {m.dy, 1, shape.count}, sign * by_factor,
                        shape.dattention + n * GaussianBank<Real>::kNumbers);
  }

 private:
  const GaussianArguments<Real>& shape;
  Worker& w;
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
