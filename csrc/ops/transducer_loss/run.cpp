#include "ops/transducer_loss/run.h"

#include <algorithm>
#include <vector>

#include "ops/linear/plan.h"

namespace fusedrnn {
namespace {

template <class Real>
struct TransducerWorkspace {
  LinearWorkspace linear;
  std::vector<TransducerFrame> frames;
  Buffer hidden, dhidden, cells, occupancies, lattice;
};

template <class Item>
Item* take(Buffer& buffer, Index count) {
  buffer = Buffer(static_cast<std::size_t>(count) * sizeof(Item));
  return buffer.as<Item>();
}

// All frames with all their cells.
template <class Real>
void number_frames(TransducerLossArguments<Real>& a, std::vector<TransducerFrame>& frames) {
  for (Index b = 0; b < a.batch; ++b) {
    const TransducerRow& row = a.row[b];
    const Index width = row.length + 1;
    for (Index t = 0; t < row.steps; ++t) {
      const Index cells = row.cells + t * width;
      frames.push_back({b, t, cells, 0, width, cells});
    }
  }
  a.frame_count = static_cast<Index>(frames.size());
  frames.push_back({0, 0, a.rows, 0, 0, a.rows});
  a.frames = frames.data();
}

template <class Real>
void take_lattice(TransducerLossArguments<Real>& a, int threads, bool backward, Buffer& buffer) {
  a.lattice_size = 0;
  for (Index b = 0; b < a.batch; ++b)
    a.lattice_size = std::max(a.lattice_size, lattice_size(a.row[b].steps, a.row[b].length, backward));
  a.lattice = take<Real>(buffer, threads * a.lattice_size);
}

}  // namespace

template <class Real>
bool run_transducer_forward(TransducerLossArguments<Real> a, const Interrupt& interrupt) {
  TransducerWorkspace<Real> workspace;
  const int threads = plan_linear_forward<Real>(a, num_threads(), workspace.linear);
  number_frames(a, workspace.frames);
  take_lattice(a, threads, false, workspace.lattice);
  a.hidden = take<Real>(workspace.hidden, threads * kForwardRows * a.in_features);
  a.x = a.hidden;
  return run_operation(a, threads, interrupt, operations<Real>().transducer_loss.forward);
}

template <class Real>
bool run_transducer_backward(TransducerLossArguments<Real> a, const Interrupt& interrupt) {
  TransducerWorkspace<Real> workspace;
  const int threads = plan_linear_backward<Real>(a, num_threads(), workspace.linear);
  number_frames(a, workspace.frames);
  take_lattice(a, threads, true, workspace.lattice);
  a.hidden = take<Real>(workspace.hidden, a.chunk_rows * a.in_features);
  a.x = a.hidden;
  a.dx = take<Real>(workspace.dhidden, a.chunk_rows * a.in_features);
  a.cell = take<TransducerCell<Real>>(workspace.cells, a.chunk_rows);
  a.to_blank = take<Real>(workspace.occupancies, 2 * a.rows);
  a.to_label = a.to_blank + a.rows;
  return run_operation(a, threads, interrupt, operations<Real>().transducer_loss.backward);
}

template bool run_transducer_forward(TransducerLossArguments<float>, const Interrupt&);
template bool run_transducer_forward(TransducerLossArguments<double>, const Interrupt&);
template bool run_transducer_backward(TransducerLossArguments<float>, const Interrupt&);
template bool run_transducer_backward(TransducerLossArguments<double>, const Interrupt&);

}  // namespace fusedrnn
