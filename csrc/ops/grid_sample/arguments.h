// Arguments of sampling an image at the points of a grid; see kernel.h beside this for the CPU, kernel.cuh for a
// device.
#pragma once
#include "common/arguments.h"
#include "common/type.h"

namespace fusedrnn {

enum class Interpolation { bilinear, nearest };
enum class Padding { zeros, border, reflection };

// On the CPU.
template <class Real>
struct GridSampleArguments {
  Index images, channels, height, width;
  Index points;  // of one image
  Interpolation interpolation;
  Padding padding;
  bool align_corners;
  const Real* input;  // (images, channels, height, width)
  const Real* grid;   // (images, points, 2): x, y
  Real* out;          // forward, written: (images, channels, points)
  const Real* dout;   // backward
  Real* dinput;       // backward, written
  Real* dgrid;        // backward, written
};

// On a device, whose arrays are of `type`, and A of its accumulator's. A null array is absent; of the gradients one
// that nobody wants.
struct GridSampleCall {
  Type type;
  Index images, channels, height, width;
  Index points;       // of one image
  int interpolation;  // numbers of the enumerators above
  int padding;
  bool align_corners;
  const void* input;
  const void* grid;
  bool wide_grid;  // grid and dgrid are of A
  void* out;
  const void* dout;
  void* dinput;
  void* dgrid;
  void* workspace;

  template <class Visit>
  void each_field(const Visit& visit) {
    visit("dtype", type);
    visit("images", images);
    visit("channels", channels);
    visit("height", height);
    visit("width", width);
    visit("points", points);
    visit("interpolation", interpolation);
    visit("padding", padding);
    visit("align_corners", align_corners);
    visit("input", input);
    visit("grid", grid);
    visit("wide_grid", wide_grid);
    visit("out", out);
    visit("dout", dout);
    visit("dinput", dinput);
    visit("dgrid", dgrid);
  }
};

}  // namespace fusedrnn
