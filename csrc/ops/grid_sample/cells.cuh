// Where the points of a grid lie, on a device, and which of them lie in a cell: between four pixels.
#pragma once
#include "cuda/runtime/backend.h"
#include "cuda/runtime/either.h"
#include "ops/grid_sample/arguments.h"
#include "ops/grid_sample/axis.h"

namespace fusedrnn {
namespace {

// Of the four pixels of a point: bit 0 of a corner's number says right, bit 1 lower.
template <class A>
FUSEDRNN_INLINE A corner_weight(int corner, A right, A down) {
  return (corner & 1 ? right : 1 - right) * (corner & 2 ? down : 1 - down);
}

template <class A>
struct GridPoint {
  Index line, column;  // of the upper left pixel, which may lie outside
  A right, down;       // how far towards the right and lower ones
  A x_slope, y_slope;
  int has;  // a bit for each corner that lies in the image
  bool finite;
  FUSEDRNN_INLINE A weight(int corner) const { return corner_weight(corner, right, down); }
};

template <class T>
struct GridPoints {
  using A = Accumulator<T>;
  Index count, height, width;  // points of an image, pixels
  Axis<A> columns, lines;
  Padding padding;
  bool bilinear;
  Either<T> grid;  // only read

  explicit GridPoints(const GridSampleCall& call)
      : count(call.points),
        height(call.height),
        width(call.width),
        columns(call.width, call.align_corners),
        lines(call.height, call.align_corners),
        padding(static_cast<Padding>(call.padding)),
        bilinear(static_cast<Interpolation>(call.interpolation) == Interpolation::bilinear),
        grid{const_cast<void*>(call.grid), call.wide_grid} {}

  // A point that is not finite has no pixels; its slopes are nan where it is one of several that count.
  FUSEDRNN_INLINE GridPoint<A> at(Index image, Index p) const {
    A x = grid.get((image * count + p) * 2), y = grid.get((image * count + p) * 2 + 1);
    const A nan = A(NAN), none = bilinear ? nan : A(0);
    if (x - x != 0 || y - y != 0) return {0, 0, nan, nan, none, none, 0, false};
    GridPoint<A> point = {};
    place(columns, x, point.x_slope);
    place(lines, y, point.y_slope);
    const A left = bilinear ? whole(x) : nearest(x), top = bilinear ? whole(y) : nearest(y);
    point.column = static_cast<Index>(left);
    point.line = static_cast<Index>(top);
    point.has = corners(point.line, point.column);
    point.finite = true;
    if (bilinear) {
      point.right = x - left;
      point.down = y - top;
    } else {
      point.x_slope = point.y_slope = 0;
    }
    return point;
  }

  // The point's pixels, 0 where there are none: a pixel outside is not 0 times something.
  FUSEDRNN_INLINE void fetch(const T* plane, const GridPoint<A>& point, A* pixel) const {
    const T* const upper_left = plane + point.line * width + point.column;
    FUSEDRNN_UNROLL
    for (int corner = 0; corner < 4; ++corner)
      pixel[corner] = point.has >> corner & 1 ? widen(upper_left[(corner >> 1) * width + (corner & 1)]) : A(0);
  }

  // The cell to the lower right of a pixel: one more line and column than there are of pixels.
  FUSEDRNN_INLINE Index cell_of(Index line, Index column) const { return (line + 1) * (width + 1) + column + 1; }
  FUSEDRNN_INLINE Index cells() const { return (height + 1) * (width + 1); }

 private:
  FUSEDRNN_INLINE void place(const Axis<A>& axis, A& at, A& slope) const {
    axis.place(at, at, slope);
    if (padding == Padding::reflection) axis.reflect(at, slope);
    if (padding == Padding::zeros)
      axis.bound(at);
    else
      axis.clip(at, slope);
  }
  FUSEDRNN_INLINE int corners(Index line, Index column) const {
    const int upper = line >= 0 && line < height, lower = bilinear && line >= -1 && line < height - 1;
    const int left = column >= 0 && column < width, right = bilinear && column >= -1 && column < width - 1;
    return (upper & left) | (upper & right) << 1 | (lower & left) << 2 | (lower & right) << 3;
  }
};

// The points of each image, sorted by cell.
template <class A>
struct GridCells {
  Index count;      // of an image
  Index* begins;    // (images, count + 1): where a cell's points begin in the order
  Index* rank;      // (images, points): of a point among those of its cell
  Index* order;     // (images, points): the points
  A *right, *down;  // (images, points): theirs, in that order
  FUSEDRNN_INLINE Index begin(Index image, Index cell) const { return begins[image * (count + 1) + cell]; }
};

// Counts the points of an image in each cell, and ranks them, going through them in their order, as many at a time as a
// block has threads. Then the counts become the places where the cells begin.
template <class T>
struct GridRank {
  using A = Accumulator<T>;
  GridPoints<T> points;
  GridCells<A> cells;
  Index first;  // image

  FUSEDRNN_DEVICE void operator()(Block& block, Index n) const {
    Index* const keys = static_cast<Index*>(block.shared());
    Index* const counted = keys + block.threads();
    Index* const counts = cells.begins + n * (cells.count + 1);
    block.each([&](int thread) {
      for (Index i = thread; i <= cells.count; i += block.threads()) counts[i] = 0;
    });
    for (Index begin = 0; begin < points.count; begin += block.threads()) {
      block.each([&](int thread) { keys[thread] = key(first + n, begin + thread); });
      block.each([&](int thread) {
        counted[thread] = 0;
        if (keys[thread] >= 0) rank(keys, block.threads(), thread, counts, n * points.count + begin, counted[thread]);
      });
      block.each([&](int thread) {
        if (counted[thread] > 0) counts[keys[thread]] = counted[thread];
      });
    }
    add_up(block, counts, keys);
  }

 private:
  // The cell of a point, or -1: there is no pixel near it.
  FUSEDRNN_DEVICE Index key(Index image, Index p) const {
    if (p >= points.count) return -1;
    const GridPoint<A> point = points.at(image, p);
    return point.has ? points.cell_of(point.line, point.column) : -1;
  }
  // `counted`: the points of the cell up to this one, where it is the last of those at hand.
  FUSEDRNN_DEVICE void rank(const Index* keys, int threads, int thread, const Index* counts, Index begin,
                            Index& counted) const {
    Index before = counts[keys[thread]];
    bool is_last = true;
    for (int k = 0; k < threads; ++k) {
      const bool same = keys[k] == keys[thread];
      before += same && k < thread;
      is_last = is_last && !(same && k > thread);
    }
    cells.rank[begin + thread] = before;
    if (is_last) counted = before + 1;
  }
  // Each thread has a run of cells.
  FUSEDRNN_DEVICE void add_up(Block& block, Index* counts, Index* sums) const {
    const Index size = cells.count + 1;
    const auto run = [&](int thread) { return size * thread / block.threads(); };
    block.each([&](int thread) {
      Index sum = 0;
      for (Index i = run(thread); i < run(thread + 1); ++i) sum += counts[i];
      sums[thread] = sum;
    });
    block.each([&](int thread) {
      if (thread > 0) return;
      Index sum = 0;
      for (int k = 0; k < block.threads(); ++k) {
        const Index own = sums[k];
        sums[k] = sum;
        sum += own;
      }
    });
    block.each([&](int thread) {
      Index sum = sums[thread];
      for (Index i = run(thread); i < run(thread + 1); ++i) {
        const Index own = counts[i];
        counts[i] = sum;
        sum += own;
      }
    });
  }
};

// Brings the points into the order of their cells.
template <class T>
struct GridOrder {
  using A = Accumulator<T>;
  GridPoints<T> points;
  GridCells<A> cells;
  Index first;

  FUSEDRNN_HOST_DEVICE void operator()(Index, Index n, Index p) const {
    const GridPoint<A> point = points.at(first + n, p);
    if (!point.has) return;
    const Index cell = points.cell_of(point.line, point.column);
    const Index at = n * points.count + cells.begin(n, cell) + cells.rank[n * points.count + p];
    cells.order[at] = p;
    cells.right[at] = point.right;
    cells.down[at] = point.down;
  }
};

}  // namespace
}  // namespace fusedrnn
