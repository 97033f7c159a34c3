// Reading an image through a grid of Gaussians: patch = gamma F_Y image F_X^T for every channel.
#pragma once
#include "ops/gaussian_read/bank.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class GaussianRead : GaussianRows<Real> {
  using Base = GaussianRows<Real>;
  using Base::m;

 public:
  GaussianRead(const GaussianReadArguments<Real>& arguments, Worker& worker) : Base(arguments, worker), a(arguments) {}

  void forward() {
    Base::each_row([this](Index n, const GaussianBank<Real>& bank) {
      for (Index c = n * a.channels; c < (n + 1) * a.channels; ++c) {
        Real* patch = a.patch + c * a.count * a.count;
        read_lines(c);
        multiply({m.lines, a.width, 1}, m.x_transposed, a.count, a.width, a.count, patch);
        for (Index i = 0; i < a.count * a.count; ++i) patch[i] = static_cast<Real>(double(patch[i]) * bank.factor());
      }
    });
  }

  void backward() {
    Base::each_row([this](Index n, const GaussianBank<Real>& bank) {
      Base::clear_filter_gradients();
      for (Index c = n * a.channels; c < (n + 1) * a.channels; ++c) channel_gradient(c, bank.factor());
      Base::write_gradient(bank, n, 1);
    });
  }

 private:
  const GaussianReadArguments<Real>& a;

  const Real* image(Index c) const { return a.image + c * a.height * a.width; }

  // F_Y image.
  void read_lines(Index c) { multiply({m.y, a.height, 1}, image(c), a.count, a.height, a.width, m.lines); }

  void channel_gradient(Index c, double factor) {
    m.set_patch(a.dpatch + c * a.count * a.count, factor, a.count);
    read_lines(c);
    // dF_X += dpatch^T (F_Y image)
    multiply({m.patch, 1, a.count}, m.lines, a.count, a.count, a.width, m.dx, true);
    // dF_Y^T += (image F_X^T) dpatch^T
    multiply({image(c), a.width, 1}, m.x_transposed, a.height, a.width, a.count, m.columns);
    multiply({m.columns, a.count, 1}, m.patch_transposed, a.height, a.count, a.count, m.dy, true);
    // dimage = F_Y^T (dpatch F_X)
    multiply({m.patch, a.count, 1}, m.x, a.count, a.count, a.width, m.more_lines);
    multiply({m.y, 1, a.height}, m.more_lines, a.height, a.count, a.width, a.dimage + c * a.height * a.width);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
