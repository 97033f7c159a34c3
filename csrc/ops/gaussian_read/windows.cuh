// Grids of Gaussians on a device: filters, products with them, and their gradients, for reading and for writing. Every
// element of a product is one chain of fused multiply-adds, so that a row's bits depend on that row alone.
#pragma once
#include <cmath>

#include "cuda/engine.h"
#include "cuda/runtime/arena.h"
#include "cuda/runtime/backend.h"
#include "cuda/runtime/either.h"
#include "cuda/runtime/reduce.h"
#include "ops/gaussian_read/arguments.h"
#include "ops/gaussian_read/axis.h"

namespace fusedrnn {
namespace {

constexpr int kFilterThreads = 64;     // of a block that has a filter: a power of 2
constexpr int kAttentionThreads = 64;  // of one that has a row's gradients

// The grids of all rows.
template <class T>
struct GaussianRows {
  Index height, width, count;
  Either<T> attention;  // only read

  FUSEDRNN_INLINE GaussianGrid grid(Index row) const {
    double numbers[GaussianGrid::kNumbers];
    for (Index k = 0; k < GaussianGrid::kNumbers; ++k)
      numbers[k] = double(attention.get(row * GaussianGrid::kNumbers + k));
    return GaussianGrid(height, width, count, numbers);
  }
};

// A filter a block: first those of x of a row, then those of y.
template <class T>
struct GaussianFill {
  using A = Accumulator<T>;
  GaussianRows<T> rows;
  A *x, *y;  // (rows, count, width), (rows, count, height)

  FUSEDRNN_DEVICE void operator()(Block& block, Index index) const {
    const Index row = index / (2 * rows.count), number = index % (2 * rows.count), i = number % rows.count;
    const bool along_x = number < rows.count;
    const GaussianPlaces places = rows.grid(row).axis(along_x);
    A* const filter = (along_x ? x : y) + (row * rows.count + i) * places.size;
    A* const sums = static_cast<A*>(block.shared());
    block.each([&](int thread) {
      A sum = 0;
      for (Index a = thread; a < places.size; a += block.threads()) {
        const A power = std::exp(static_cast<A>(-places.squares(i, a) / 2));
        filter[a] = power;
        sum += power;
      }
      sums[thread] = sum;
    });
    reduce(block, sums, Sum<A>{});
    block.each([&](int thread) {
      const A divisor = GaussianPlaces::bounded(sums[0]);
      for (Index a = thread; a < places.size; a += block.threads()) filter[a] /= divisor;
    });
  }
};

// A patch in the accumulator's type, times the factor or divided by it.
template <class T>
struct GaussianScale {
  using A = Accumulator<T>;
  GaussianRows<T> rows;
  Index channels;
  int power;
  const T* from;
  A* to;
  FUSEDRNN_HOST_DEVICE void operator()(Index o, Index i, Index j) const {
    const double factor = rows.grid(o / channels).factor;
    const Index at = (o * rows.count + i) * rows.count + j;
    to[at] = static_cast<A>(double(widen(from[at])) * (power > 0 ? factor : 1 / factor));
  }
};

// Where a factor's element is that belongs to a channel of a row, one line or column of the product, and one term.
template <class E>
struct GaussianFactor {
  const E* data;
  Index row, channel, across, along;
  FUSEDRNN_INLINE const E& at(Index b, Index c, Index r, Index k) const {
    return data[b * row + c * channel + r * across + k * along];
  }
};

// A product of matrices for each channel of each row, or the sum of a row's. `power`: of the factor it is multiplied
// by.
template <class T, class Left, class Right, class Out>
struct GaussianProduct {
  using A = Accumulator<T>;
  GaussianRows<T> rows;
  Index channels;  // of which each has a product
  Index summed;    // channels that are added up
  Index terms;
  GaussianFactor<Left> left;
  GaussianFactor<Right> right;
  Out* out;  // (rows * channels, lines, columns)
  Index lines, columns;
  int power;

  FUSEDRNN_HOST_DEVICE void operator()(Index o, Index r, Index c) const {
    const Index b = o / channels, channel = o % channels;
    A sum = 0;
    for (Index s = channel; s < channel + summed; ++s)
      for (Index k = 0; k < terms; ++k)
        sum = std::fma(static_cast<A>(widen(left.at(b, s, r, k))), static_cast<A>(widen(right.at(b, s, c, k))), sum);
    if (power != 0) {
      const double factor = rows.grid(b).factor;
      sum = static_cast<A>(double(sum) * (power > 0 ? factor : 1 / factor));
    }
    out[(o * lines + r) * columns + c] = narrow<Out>(sum);
  }
};

// A row a block: dattention from the gradients of the filters. A thread has every so many-th filter.
template <class T>
struct GaussianAttention {
  using A = Accumulator<T>;
  GaussianRows<T> rows;
  const A *x, *y;    // (rows, count, width), (rows, count, height)
  const A *dx, *dy;  // of their shapes
  double sign;       // of what the logarithm of the factor gets
  Either<T> dattention;

  static constexpr int kSums = 5;

  FUSEDRNN_DEVICE void operator()(Block& block, Index row) const {
    double* const sums = static_cast<double*>(block.shared());  // (threads, 5), as dattention
    const GaussianGrid grid = rows.grid(row);
    block.each([&](int thread) {
      double* const own = sums + thread * kSums;
      for (int k = 0; k < kSums; ++k) own[k] = 0;
      for (Index i = thread; i < 2 * rows.count; i += block.threads()) add(grid, row, i, own);
    });
    block.each([&](int thread) {
      if (thread >= kSums) return;
      double sum = 0;
      for (int k = 0; k < block.threads(); ++k) sum += sums[k * kSums + thread];
      dattention.set(row * kSums + thread, static_cast<A>(scaled(grid, thread, sum)));
    });
  }

 private:
  FUSEDRNN_DEVICE void add(const GaussianGrid& grid, Index row, Index number, double* sums) const {
    const bool along_x = number < rows.count;
    const Index i = number % rows.count;
    const GaussianPlaces places = grid.axis(along_x);
    const Index at = (row * rows.count + i) * places.size;
    const A *filter = (along_x ? x : y) + at, *gradient = (along_x ? dx : dy) + at;
    double center = 0;
    places.add_gradient<1>(
        i, [&](Index a) { return double(gradient[a]); }, [&](Index a) { return double(filter[a]); }, center, sums[3],
        sums[2]);
    sums[along_x ? 0 : 1] += center;
    // A patch and an image are linear in F_X, so the sum of dF_X F_X is what the factor gets.
    for (Index a = 0; along_x && a < places.size; ++a) sums[4] += double(gradient[a]) * double(filter[a]);
  }
  FUSEDRNN_DEVICE double scaled(const GaussianGrid& grid, int number, double sum) const {
    if (number == 0) return grid.by_x(sum);
    if (number == 1) return grid.by_y(sum);
    if (number == 3) return grid.by_log_delta(sum);
    return number == 4 ? sign * sum : sum;
  }
};

template <class T>
class GaussianWindows {
  using A = Accumulator<T>;

 public:
  GaussianWindows(const GaussianCall& gaussian, bool backward)
      : call(gaussian),
        height(gaussian.height),
        width(gaussian.width),
        count(gaussian.count),
        rows{height, width, count, {const_cast<void*>(gaussian.attention), gaussian.wide_attention}},
        differentiates(backward) {}

  void lay_out(Arena& arena) {
    const Index planes = call.rows * call.channels;
    x = arena.take<A>(call.rows, count, width);
    y = arena.take<A>(call.rows, count, height);
    lines = arena.take<A>(planes, count, width);
    patch = arena.take<A>(planes, count, count);
    columns = arena.take<A>(differentiates ? planes : 0, height, count);
    dx = arena.take<A>(differentiates ? call.rows : 0, count, width);
    dy = arena.take<A>(differentiates ? call.rows : 0, count, height);
  }

  void make_filters(Backend& backend) const {
    backend.for_each_block(call.rows * 2 * count, kFilterThreads, kFilterThreads * sizeof(A),
                           GaussianFill<T>{rows, x, y});
  }
  // The patch that is at hand: `from`, times the factor or divided by it.
  void scale_patch(Backend& backend, const T* from, int power) const {
    backend.for_each(call.rows * call.channels, count, count,
                     GaussianScale<T>{rows, call.channels, power, from, patch});
  }
  // lines = F_Y image
  void read_lines(Backend& backend, const T* image) const {
    each_channel(backend, y_filters(height, 1), of_image(image, 1, width), height, lines, count, width);
  }
  // to = lines F_X^T, times the factor or divided by it
  void read_patch(Backend& backend, T* to, int power) const {
    each_channel(backend, of_lines(width, 1), x_filters(width, 1), width, to, count, count, power);
  }
  // to = F_Y^T patch F_X; overwrites the lines
  void write_image(Backend& backend, T* to) const {
    each_channel(backend, of_patch(count, 1), x_filters(1, width), count, lines, count, width);
    each_channel(backend, y_filters(1, height), of_lines(1, width), count, to, height, width);
  }
  // dF_X = patch^T lines and dF_Y = patch (image F_X^T)^T, of all channels
  void filter_gradients(Backend& backend, const T* image) const {
    each_channel(backend, of_image(image, width, 1), x_filters(width, 1), width, columns, height, count);
    each_row(backend, of_patch(1, count), of_lines(1, width), dx, count, width);
    const GaussianFactor<A> read = {columns, call.channels * height * count, height * count, count, 1};
    each_row(backend, of_patch(count, 1), read, dy, count, height);
  }
  void attention_gradient(Backend& backend, double sign) const {
    backend.for_each_block(
        call.rows, kAttentionThreads, kAttentionThreads * GaussianAttention<T>::kSums * sizeof(double),
        GaussianAttention<T>{rows, x, y, dx, dy, sign, Either<T>{call.dattention, call.wide_attention}});
  }

 private:
  const GaussianCall& call;
  const Index height, width, count;
  const GaussianRows<T> rows;
  const bool differentiates;
  A *x, *y;    // filters (rows, count, width), (rows, count, height)
  A* lines;    // (rows, channels, count, width)
  A* patch;    // (rows, channels, count, count)
  A* columns;  // (rows, channels, height, count)
  A *dx, *dy;  // of the filters

  // Factors, by the distances between what gives elements of the product, and between terms.
  GaussianFactor<A> x_filters(Index across, Index along) const { return {x, count * width, 0, across, along}; }
  GaussianFactor<A> y_filters(Index across, Index along) const { return {y, count * height, 0, across, along}; }
  GaussianFactor<T> of_image(const T* image, Index across, Index along) const {
    return {image, call.channels * height * width, height * width, across, along};
  }
  GaussianFactor<A> of_lines(Index across, Index along) const {
    return {lines, call.channels * count * width, count * width, across, along};
  }
  GaussianFactor<A> of_patch(Index across, Index along) const {
    return {patch, call.channels * count * count, count * count, across, along};
  }

  template <class Left, class Right, class Out>
  void each_channel(Backend& backend, GaussianFactor<Left> left, GaussianFactor<Right> right, Index terms, Out* out,
                    Index out_lines, Index out_columns, int power = 0) const {
    backend.for_each(call.rows * call.channels, out_lines, out_columns,
                     GaussianProduct<T, Left, Right, Out>{rows, call.channels, 1, terms, left, right, out, out_lines,
                                                          out_columns, power});
  }
  template <class Left, class Right>
  void each_row(Backend& backend, GaussianFactor<Left> left, GaussianFactor<Right> right, A* out, Index out_lines,
                Index out_columns) const {
    backend.for_each(
        call.rows, out_lines, out_columns,
        GaussianProduct<T, Left, Right, A>{rows, 1, call.channels, count, left, right, out, out_lines, out_columns, 0});
  }
};

}  // namespace
}  // namespace fusedrnn
