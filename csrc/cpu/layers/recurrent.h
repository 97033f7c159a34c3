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

class Int8Net;

// A state array (layers * directions, B, H), strides in elements: h is of the arrays' type, c of its accumulator's.
// Void: void or const void.
template <class Void>
struct StateArray {
  Void* data = nullptr;
  Index layer = 0, row = 0;
  template <class Item>
  StateRows<Item> at(int index) const {
    return {data ? static_cast<Item*>(data) + index * layer : nullptr, row};
  }
};

template <class T>
struct ForwardCall {
  Index steps = 0, rows = 0;
  std::vector<Weights<T>> weights;    // layers * directions
  const Packed<T>* packed = nullptr;  // inference: as many, in place of weights
  const Int8Net* int8 = nullptr;      // of float32, inference: in place of both
  bool reversed = false;              // with them, a single step: in the reverse order of memory
  Sequence<const T> x;
  Sequence<T> y;
  States<StateArray<const void>> initial;
  States<StateArray<void>> final;
  std::shared_ptr<const RowLists> lists;
  std::uint64_t call = 0;  // which forward call of the layer this is: dropout's counter
  Index recompute = 0;     // training: keep states every so many steps only; 0: keep all
  LateInput<T> late;       // of a net of one layer and direction, with every step kept
  int threads = 1;         // most that may work on it
  Interrupt interrupt;
};

// What backpropagation needs of one forward call. The caller keeps x, y and the weights alive and unchanged.
template <class T>
struct Tape {
  RecurrentConfig config;
  ForwardCall<T> call;
  struct Direction {
    Buffer gates, cells;  // recomputing: no gates, and c on entering each segment but the first
    States<Buffer> initial;
  };
  std::vector<Direction> directions;  // layers * directions
  std::vector<Buffer> outputs;        // of every layer but the last, before dropout: (T, B, width)
  std::size_t bytes() const;
};

template <class T>
struct BackwardCall {
  Sequence<const T> dy;  // data null: zeros
  States<StateArray<const void>> dfinal;
  Sequence<T> dx;
  States<StateArray<void>> dinitial;
  std::vector<WeightGradients<Accumulator<T>>> gradients;  // layers * directions
  bool accumulate = false;                                 // add to them
  // (T, B) of direction 0 of layer 0, others following at T * B each: 2-norms of each state's gradient, unless null.
  States<Sequence<T>> norms;
  LateInput<T> late;  // where the forward call had one
  int threads = 1;
  Interrupt interrupt;
};

// What the registered cells are, in their order.
std::vector<CellTraits> registered_cells();

// A tape on memory of the caller's, who keeps it: tape_row_elements(config) elements of T for each row of the sequence
// arrays, padded rows too where those have them, aligned to a cache line. The call's initial states must have
// contiguous rows; they are not copied. The tape has its config; before run_backward it needs the call too.
template <class T>
Index tape_row_elements(const RecurrentConfig& config);
template <class T>
void borrow_tape(const ForwardCall<T>& call, char* memory, Tape<T>& tape);

// Both return false when the call was interrupted: outputs then hold no result. With a tape (its config set) the
// forward pass trains: it applies dropout and fills the tape.
template <class T>
bool run_forward(const RecurrentConfig& config, const ForwardCall<T>& call, Tape<T>* tape);
template <class T>
bool run_backward(const Tape<T>& tape, const BackwardCall<T>& call);

}  // namespace fusedrnn
