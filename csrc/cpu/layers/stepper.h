// A net that is run step by step: packed weights, the state between steps, and how a step is divided over threads.
#pragma once
#include <vector>

#include "common/arguments.h"
#include "cpu/layers/recurrent.h"
#include "cpu/layers/step_cost.h"
#include "cpu/layers/step_team.h"
#include "cpu/runtime/pool.h"

namespace fusedrnn {

// For one thread at a time.
template <class Real>
class Stepper {
 public:
  using real = Real;

  // Packs the weights, one for each layer of one direction; the state is zero, and so is the one that a reset restores.
  // Throws std::bad_alloc.
  Stepper(const RecurrentConfig& config, const std::vector<Weights<Real>>& weights, Index rows);

  // x (B, I) -> y (B, H), h of the last layer; on at most `threads` threads.
  void step(StateRows<const Real> x, StateRows<Real> y, int threads);

  // State arrays are (L, B, H).
  void read_state(const States<StateArray<Real>>& to) const;
  void write_state(const States<StateArray<const Real>>& from);
  void keep_as_first();   // the state, as what a reset sets it to
  void reset(Index row);  // to the first state

  // Multiply-adds of a step.
  double work() const { return work_; }

 private:
  CellTraits traits_;
  typename StepTeam<Real>::Kernel step_;
  Index rows_, hidden_;
  double work_;
  StepTeam<Real> team_;
  std::vector<Buffer> packed_;
  States<Buffer> state_, first_;  // (L, B, H): between two steps, and what a reset sets it to
  Buffer h_next_;                 // of the step that runs; c is written where it is read
  Buffer operand_, kept_;
  unsigned steps_ = 0;
  std::vector<StepArguments<Real>> layers_;

  StateRows<Real> rows_of(const Buffer& state, std::size_t layer) const {
    return {state.as<Real>() + static_cast<Index>(layer) * rows_ * hidden_, hidden_};
  }
};

}  // namespace fusedrnn
