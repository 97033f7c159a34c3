// Writing a patch through a grid of Gaussians on a device; kernel.h beside this is the CPU's.
#pragma once
#include "ops/gaussian_read/windows.cuh"
#include "ops/gaussian_write/arguments.h"

namespace fusedrnn {
namespace {

template <class T>
class GaussianWrite {
 public:
  explicit GaussianWrite(const GaussianWriteCall& writing)
      : call(writing), windows(writing, writing.dattention != nullptr) {}

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
    windows.scale_patch(backend, patch(), -1);
    windows.write_image(backend, static_cast<T*>(call.image));
  }

  void backward(const Place& place) {
    Arena arena(call.workspace);
    windows.lay_out(arena);
    Backend backend(place, nullptr, false);
    const T* const dimage = static_cast<const T*>(call.dimage);
    windows.make_filters(backend);
    windows.scale_patch(backend, patch(), -1);
    windows.read_lines(backend, dimage);
    windows.read_patch(backend, static_cast<T*>(call.dpatch), -1);
    windows.filter_gradients(backend, dimage);
    windows.attention_gradient(backend, -1);
  }

 private:
  const GaussianWriteCall& call;
  GaussianWindows<T> windows;

  const T* patch() const { return static_cast<const T*>(call.patch); }
};

}  // namespace
}  // namespace fusedrnn
