// Layers of a recurrent net: both directions of every layer, dropout between layers, and the tape.
#pragma once
#include <memory>
#include <vector>

#include "common/arguments.h"
#include "cpu/kernels.h"
#include "cpu/layers/schedule.h"
#include "cpu/runtime/pool.h"
#include "net/config.h"

namespace fusedrnn {

// A state array (layers * directions, B, H).
template <class Real>
struct StateArray {
  Real* data = nullptr;
  Index layer = 0, row = 0;
  StateRows<Real> at(int index) const { return {data ? data + index * layer : nullptr, row}; }
};

template <class Real>
struct ForwardCall {
  Index steps = 0, rows = 0;
  std::vector<Weights<Real>> weights;                 // layers * directions
  const PackedWeights<const Real>* packed = nullptr;  // inference: as many, in place of weights
  bool reversed = false;                              // with them, a single step: in the reverse order of memory
  Sequence<const Real> x;
  Sequence<Real> y;
  States<StateArray<const Real>> initial;
  States<StateArray<Real>> final;
  std::shared_ptr<const RowLists> lists;
  std::uint64_t call = 0;  // which forward call of the layer this is: dropout's counter
  Index recompute = 0;     // training: keep states every so many steps only; 0: keep all
  LateInput<Real> late;    // of a net of one layer and direction, with every step kept
  int threads = 1;         // most that may work on it
  Interrupt interrupt;
};

// What backpropagation needs of one forward call. The caller keeps x, y and the weights alive and unchanged.
template <class Real>
struct Tape {
  RecurrentConfig config;
  ForwardCall<Real> call;
  struct Direction {
    Buffer gates, cells;  // recomputing: no gates, and c on entering each segment but the first
    States<Buffer> initial;
  };
  std::vector<Direction> directions;  // layers * directions
  std::vector<Buffer> outputs;        // of every layer but the last, before dropout: (T, B, width)
  std::size_t bytes() const;
};

template <class Real>
struct BackwardCall {
  Sequence<const Real> dy;  // data null: zeros
  States<StateArray<const Real>> dfinal;
  Sequence<Real> dx;
  States<StateArray<Real>> dinitial;
  std::vector<WeightGradients<Real>> gradients;  // layers * directions
  bool accumulate = false;                       // add to them
  // (T, B) of direction 0 of layer 0, others following at T * B each: 2-norms of each state's gradient, unless null.
  States<Sequence<Real>> norms;
  LateInput<Real> late;  // where the forward call had one
  int threads = 1;
  Interrupt interrupt;
};

// What the registered cells are, in their order.
std::vector<CellTraits> registered_cells();

// A tape on memory of the caller's, who keeps it: tape_row_elements(config) for each row of the sequence arrays, padded
// rows too where those have them, aligned to a cache line. The call's initial states must have contiguous rows; they
// are not copied. The tape has its config; before run_backward it needs the call too.
Index tape_row_elements(const RecurrentConfig& config);
template <class Real>
void borrow_tape(const ForwardCall<Real>& call, Real* memory, Tape<Real>& tape);

// Both return false when the call was interrupted: outputs then hold no result. With a tape (its config set) the
// forward pass trains: it applies dropout and fills the tape.
template <class Real>
bool run_forward(const RecurrentConfig& config, const ForwardCall<Real>& call, Tape<Real>* tape);
template <class Real>
bool run_backward(const Tape<Real>& tape, const BackwardCall<Real>& call);

}  // namespace fusedrnn
