// Sampling at the points of a grid on a device; kernel.h beside this is the CPU's. The gradient of an image is
// gathered: points are sorted by the cell between four pixels that they lie in, those of a cell in their order, and
// then a thread adds up what the points of the four cells around its pixel give it. So nothing is added up atomically,
// and an image's bits depend on that image alone.
#pragma once
#include <algorithm>
#include <cmath>

#include "cuda/engine.h"
#include "cuda/runtime/arena.h"
#include "cuda/runtime/backend.h"
#include "ops/grid_sample/cells.cuh"

namespace fusedrnn {
namespace {

constexpr Index kGridChannels = 4;                  // that a thread takes together
constexpr Index kGridChunkBytes = Index(64) << 20;  // of the sorted points of a chunk of images
constexpr int kGridThreads = 256;                   // that sort the points of an image

template <class T>
struct GridForward {
  using A = Accumulator<T>;
  GridPoints<T> points;
  Index channels;
  const T* input;
  T* out;

  FUSEDRNN_HOST_DEVICE void operator()(Index image, Index group, Index p) const {
    const GridPoint<A> point = points.at(image, p);
    const Index end = smaller((group + 1) * kGridChannels, channels);
    for (Index c = image * channels + group * kGridChannels; c < image * channels + end; ++c)
      out[c * points.count + p] = narrow<T>(sample(input + c * points.height * points.width, point));
  }

 private:
  FUSEDRNN_INLINE A sample(const T* plane, const GridPoint<A>& point) const {
    if (!point.finite) return A(NAN);
    A pixel[4];
    points.fetch(plane, point, pixel);
    return (pixel[0] * point.weight(0) + pixel[2] * point.weight(2)) +
           (pixel[1] * point.weight(1) + pixel[3] * point.weight(3));
  }
};

// The gradient of a point: of all channels in their order.
template <class T>
struct GridPointGradient {
  using A = Accumulator<T>;
  GridPoints<T> points;
  Index channels;
  const T *input, *dout;
  Either<T> dgrid;

  FUSEDRNN_HOST_DEVICE void operator()(Index, Index image, Index p) const {
    const GridPoint<A> point = points.at(image, p);
    A x = 0, y = 0;
    for (Index c = image * channels; c < (image + 1) * channels; ++c) {
      A pixel[4];
      points.fetch(input + c * points.height * points.width, point, pixel);
      const A gradient = widen(dout[c * points.count + p]);
      x += gradient * ((pixel[1] - pixel[0]) * (1 - point.down) + (pixel[3] - pixel[2]) * point.down);
      y += gradient * ((pixel[2] - pixel[0]) * (1 - point.right) + (pixel[3] - pixel[1]) * point.right);
    }
    const Index at = (image * points.count + p) * 2;
    dgrid.set(at, slope_times(point.x_slope, x));
    dgrid.set(at + 1, slope_times(point.y_slope, y));
  }

 private:
  // Where the coordinate has no influence it has none on a nan or an infinity either.
  FUSEDRNN_INLINE static A slope_times(A slope, A gradient) { return slope == 0 ? A(0) : slope * gradient; }
};

// The gradient of a pixel in some channels: of the points of the four cells around it, a cell after the other.
template <class T>
struct GridPixelGradient {
  using A = Accumulator<T>;
  GridPoints<T> points;
  GridCells<A> cells;  // of the images from `first` on
  Index first, channels;
  const T* dout;
  T* dinput;

  FUSEDRNN_HOST_DEVICE void operator()(Index n, Index group, Index pixel) const {
    const Index line = pixel / points.width, column = pixel % points.width;
    const Index begin = (first + n) * channels + group * kGridChannels;
    const int count = static_cast<int>(smaller(kGridChannels, channels - group * kGridChannels));
    A sum[kGridChannels] = {};
    for (int corner = 0; corner < (points.bilinear ? 4 : 1); ++corner) {
      const Index cell = points.cell_of(line - (corner >> 1), column - (corner & 1));
      for (Index k = cells.begin(n, cell); k < cells.begin(n, cell + 1); ++k) {
        const Index at = n * points.count + k;
        add(sum, begin, count, cells.order[at], corner_weight(corner, cells.right[at], cells.down[at]));
      }
    }
    FUSEDRNN_UNROLL
    for (int c = 0; c < kGridChannels; ++c)
      if (c < count) dinput[(begin + c) * points.height * points.width + pixel] = narrow<T>(sum[c]);
  }

 private:
  FUSEDRNN_INLINE void add(A* sum, Index begin, int count, Index p, A weight) const {
    FUSEDRNN_UNROLL
    for (int c = 0; c < kGridChannels; ++c)
      if (c < count) sum[c] += widen(dout[(begin + c) * points.count + p]) * weight;
  }
};

template <class T>
class GridSample {
  using A = Accumulator<T>;

 public:
  explicit GridSample(const GridSampleCall& sampling)
      : call(sampling), points(sampling), groups((sampling.channels + kGridChannels - 1) / kGridChannels) {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    lay_out(arena);
    return arena.used();
  }

  void forward(const Place& place) {
    Backend backend(place, nullptr, false);
    backend.for_each(call.images, groups, call.points,
                     GridForward<T>{points, call.channels, input(), static_cast<T*>(call.out)});
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    lay_out(arena);
    Backend backend(place, nullptr, false);
    if (call.dgrid)
      backend.for_each(
          1, call.images, call.points,
          GridPointGradient<T>{points, call.channels, input(), dout(), Either<T>{call.dgrid, call.wide_grid}});
    for (Index first = 0; call.dinput && first < call.images; first += chunk)
      pixel_gradients(backend, first, std::min(chunk, call.images - first));
  }

 private:
  const GridSampleCall& call;
  const GridPoints<T> points;
  const Index groups;
  Index chunk;  // images whose points are sorted at once
  GridCells<A> cells;

  const T* input() const { return static_cast<const T*>(call.input); }
  const T* dout() const { return static_cast<const T*>(call.dout); }

  void pixel_gradients(Backend& backend, Index first, Index images) const {
    backend.for_each_block(images, kGridThreads, 2 * kGridThreads * sizeof(Index), GridRank<T>{points, cells, first});
    backend.for_each(1, images, call.points, GridOrder<T>{points, cells, first});
    backend.for_each(images, groups, call.height * call.width,
                     GridPixelGradient<T>{points, cells, first, call.channels, dout(), static_cast<T*>(call.dinput)});
  }

  void lay_out(Arena& arena) {
    cells.count = points.cells();
    const Index image_bytes =
        (cells.count + 1 + 2 * call.points) * Index(sizeof(Index)) + 2 * call.points * Index(sizeof(A));
    chunk = std::clamp<Index>(Backend::chunk_bytes(kGridChunkBytes) / image_bytes, 1, std::max<Index>(call.images, 1));
    const Index images = call.dinput ? chunk : 0;
    cells.begins = arena.take<Index>(images, cells.count + 1);
    cells.rank = arena.take<Index>(images, call.points);
    cells.order = arena.take<Index>(images, call.points);
    cells.right = arena.take<A>(images, call.points);
    cells.down = arena.take<A>(images, call.points);
  }
};

}  // namespace
}  // namespace fusedrnn
