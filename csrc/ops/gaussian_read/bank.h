// The filters of one row of the batch (Gregor et al. 2015): F(i, a) = exp(-(a - mu_i)^2 / (2 sigma^2)) / max(sum over
// a, 1e-8) for each axis, their products, and what their gradients say of the five numbers they are made from.
#pragma once
#include "cpu/runtime/worker.h"
#include "cpu/simd/rows.h"
#include "ops/gaussian_read/arguments.h"
#include "ops/gaussian_read/axis.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

constexpr int kPartialSums = 8;

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

// One axis: filters (count, size) in `filter`.
template <class Real>
struct GaussianAxis {
  GaussianPlaces places;
  Real* filter;

  void fill() const {
    using V = Vec<Real>;
    for (Index i = 0; i < places.count; ++i) {
      Real* line = filter + i * places.size;
      for (Index a = 0; a < places.size; ++a) line[a] = static_cast<Real>(-places.squares(i, a) / 2);
      Partials<Real> partial(Real(0));
      each_vector(line, places.size, -Real(__builtin_inf()), [&](Index k, Index first, int lanes, V value) {
        const V power = exp(value);
        partial.part[k] += power;
        power.store_partial(line + first, lanes);
      });
      const V divisor(GaussianPlaces::bounded(partial.sum()));
      each_vector(line, places.size, Real(0), [&](Index, Index first, int lanes, V power) {
        (power / divisor).store_partial(line + first, lanes);
      });
    }
  }

  // The gradient by the filters, element (i, a) at data[i * row + a * inner].
  void add_gradient(Left<Real> gradient, double& by_center, double& by_delta, double& by_log_variance) const {
    for (Index i = 0; i < places.count; ++i) {
      const Real *line = filter + i * places.size, *from = gradient.data + i * gradient.row;
      places.template add_gradient<kPartialSums>(
          i, [&](Index a) { return double(from[a * gradient.inner]); }, [&](Index a) { return double(line[a]); },
          by_center, by_delta, by_log_variance);
    }
  }
};

// Both axes of a row, and what they are made from.
template <class Real>
class GaussianBank {
 public:
  GaussianBank(const GaussianArguments<Real>& a, Index row, Real* x_filters, Real* y_filters)
      : grid_(a.height, a.width, a.count, Numbers(a.attention + row * kNumbers).number),
        x_{grid_.x, x_filters},
        y_{grid_.y, y_filters} {
    x_.fill();
    y_.fill();
  }

  double factor() const { return grid_.factor; }

  // dattention of the row from the gradients of the filters and of the factor's logarithm.
  void write_gradient(Left<Real> dx, Left<Real> dy, double by_log_factor, Real* dattention) const {
    double center_x = 0, center_y = 0, delta = 0, log_variance = 0;
    x_.add_gradient(dx, center_x, delta, log_variance);
    y_.add_gradient(dy, center_y, delta, log_variance);
    dattention[0] = static_cast<Real>(grid_.by_x(center_x));
    dattention[1] = static_cast<Real>(grid_.by_y(center_y));
    dattention[2] = static_cast<Real>(log_variance);
    dattention[3] = static_cast<Real>(grid_.by_log_delta(delta));
    dattention[4] = static_cast<Real>(by_log_factor);
  }

  static constexpr Index kNumbers = GaussianGrid::kNumbers;

 private:
  struct Numbers {
    double number[kNumbers];
    explicit Numbers(const Real* p) {
      for (Index k = 0; k < kNumbers; ++k) number[k] = double(p[k]);
    }
  };

  const GaussianGrid grid_;
  const GaussianAxis<Real> x_, y_;
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
    PartialSums<kPartialSums> by_factor;
    each_part<kPartialSums>(shape.count * shape.width,
                            [&](Index i, int p) { by_factor.part[p] += double(m.dx[i]) * double(m.x[i]); });
    bank.write_gradient({m.dx, shape.width, 1}, {m.dy, 1, shape.count}, sign * by_factor.sum(),
                        shape.dattention + n * GaussianBank<Real>::kNumbers);
  }

 private:
  const GaussianArguments<Real>& shape;
  Worker& w;
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
