// Reading an image through a grid of Gaussians on a device; kernel.h beside this is the CPU's.
#pragma once
#include "ops/gaussian_read/windows.cuh"

namespace fusedrnn {
namespace {

template <class T>
class GaussianRead {
  using A = Accumulator<T>;

 public:
  explicit GaussianRead(const GaussianReadCall& reading)
      : call(reading), windows(reading, reading.dattention != nullptr) {}

  std::size_t workspace_bytes() {
    Arena arena(nullptr);
    windows.lay_out(arena);
    return arena.used();
  }

  void forward(const Place& place) {
    Arena arena(call.workspace);
    windows.lay_out(arena);
    Backend backend(place, nullptr, false);
    windows.make_filters(backend);
    windows.read_lines(backend, image());
    windows.read_patch(backend, static_cast<T*>(call.patch), 1);
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    windows.lay_out(arena);
    Backend backend(place, nullptr, false);
    windows.make_filters(backend);
    windows.scale_patch(backend, static_cast<const T*>(call.dpatch), 1);
    windows.read_lines(backend, image());
    windows.filter_gradients(backend, image());
    windows.write_image(backend, static_cast<T*>(call.dimage));
    windows.attention_gradient(backend, 1);
  }

 private:
  const GaussianReadCall& call;
  GaussianWindows<T> windows;

  const T* image() const { return static_cast<const T*>(call.image); }
};

}  // namespace
}  // namespace fusedrnn
