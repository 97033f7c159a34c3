// Arguments of reading an image through a grid of Gaussians; see kernel.h beside this for the CPU,
// kernel.cuh for a device.
#pragma once
#include "common/arguments.h"
#include "common/type.h"

namespace fusedrnn {

// On the CPU. Of both ways: `image` is what the filters turn into a patch, or what they make of one.
template <class Real>
struct GaussianArguments {
  Index rows, channels, height, width, count;  // count: N, filters of each axis
  const Real* attention;                       // (rows, 5)
  Real* dattention;                            // backward, written: (rows, 5)
  Real* workspace;                             // (threads, workspace_of_thread)
  Index workspace_of_thread;

  // Elements of workspace for a thread; see bank.h.
  FUSEDRNN_INLINE static Index workspace_size(Index height, Index width, Index count) {
    return 5 * count * width + 3 * count * height + 2 * count * count;
  }
};

template <class Real>
struct GaussianReadArguments : GaussianArguments<Real> {
  const Real* image;   // (rows, channels, height, width)
  Real* patch;         // forward, written: (rows, channels, count, count)
  const Real* dpatch;  // backward
  Real* dimage;        // backward, written
};

// On a device, whose arrays are of `type`, and A of its accumulator's; of both ways. A null array is absent.
struct GaussianCall {
  Type type;
  Index rows, channels, height, width, count;
  const void* attention;
  bool wide_attention;  // attention and dattention are of A
  void* dattention;
  void* workspace;

  template <class Visit>
  void each_shared_field(const Visit& visit) {
    visit("dtype", type);
    visit("rows", rows);
    visit("channels", channels);
    visit("height", height);
    visit("width", width);
    visit("count", count);
    visit("attention", attention);
    visit("wide_attention", wide_attention);
    visit("dattention", dattention);
  }
};

struct GaussianReadCall : GaussianCall {
  const void* image;
  void* patch;
  const void* dpatch;
  void* dimage;

  template <class Visit>
  void each_field(const Visit& visit) {
    each_shared_field(visit);
    visit("image", image);
    visit("patch", patch);
    visit("dpatch", dpatch);
    visit("dimage", dimage);
  }
};

}  // namespace fusedrnn
