// Writing a patch through a grid of Gaussians: image = F_Y^T patch F_X / gamma for every channel.
#pragma once
#include "ops/gaussian_read/bank.h"
#include "ops/gaussian_write/arguments.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

template <class Real>
class GaussianWrite : GaussianRows<Real> {
  using Base = GaussianRows<Real>;
  using Base::m;

 public:
  GaussianWrite(const GaussianWriteArguments<Real>& arguments, Worker& worker)
      : Base(arguments, worker), a(arguments) {}

  void forward() {
    Base::each_row([this](Index n, const GaussianBank<Real>& bank) {
      for (Index c = n * a.channels; c < (n + 1) * a.channels; ++c) {
        m.set_patch(a.patch + c * a.count * a.count, 1 / bank.factor(), a.count);
        multiply({m.patch, a.count, 1}, m.x, a.count, a.count, a.width, m.lines);
        multiply({m.y, 1, a.height}, m.lines, a.height, a.count, a.width, a.image + c * a.height * a.width);
      }
    });
  }

  void backward() {
    Base::each_row([this](Index n, const GaussianBank<Real>& bank) {
      Base::clear_filter_gradients();
      for (Index c = n * a.channels; c < (n + 1) * a.channels; ++c) channel_gradient(c, 1 / bank.factor());
      Base::write_gradient(bank, n, -1);
    });
  }

 private:
  const GaussianWriteArguments<Real>& a;

  void channel_gradient(Index c, double factor) {
    const Real* dimage = a.dimage + c * a.height * a.width;
    Real* dpatch = a.dpatch + c * a.count * a.count;
    m.set_patch(a.patch + c * a.count * a.count, factor, a.count);
    // dpatch = F_Y (dimage F_X^T) / gamma
    multiply({dimage, a.width, 1}, m.x_transposed, a.height, a.width, a.count, m.columns);
    multiply({m.y, a.height, 1}, m.columns, a.count, a.height, a.count, dpatch);
    for (Index i = 0; i < a.count * a.count; ++i) dpatch[i] = static_cast<Real>(double(dpatch[i]) * factor);
    // dF_Y^T += (dimage F_X^T) patch^T / gamma
    multiply({m.columns, a.count, 1}, m.patch_transposed, a.height, a.count, a.count, m.dy, true);
    // dF_X += patch^T (F_Y dimage) / gamma
    multiply({m.y, a.height, 1}, dimage, a.count, a.height, a.width, m.lines);
    multiply({m.patch, 1, a.count}, m.lines, a.count, a.count, a.width, m.dx, true);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
