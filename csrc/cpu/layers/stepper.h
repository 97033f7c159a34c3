// A net that is run step by step: packed weights, the state between steps, and how a step is divided over threads.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "common/arguments.h"
#include "cpu/layers/int8_net.h"
#include "cpu/layers/packed.h"
#include "cpu/layers/recurrent.h"
#include "cpu/layers/step_cost.h"
#include "cpu/layers/step_team.h"
#include "cpu/runtime/pool.h"

namespace fusedrnn {

// For one thread at a time.
template <class T>
class Stepper {
 public:
  using type = T;

  // Packs the weights, one for each layer of one direction; the state is zero, and so is the one that a reset restores.
  // Throws std::bad_alloc.
  // int8: with weights of 8 bits, of float32 alone.
  Stepper(const RecurrentConfig& config, const std::vector<Weights<T>>& weights, Index rows, bool int8 = false);

  // x (B, I) -> y (B, H), h of the last layer; on at most `threads` threads.
  void step(StateRows<const T> x, StateRows<T> y, int threads);

  // State arrays are (L, B, H).
  void read_state(const States<StateArray<void>>& to) const;
  void write_state(const States<StateArray<const void>>& from);
  void keep_as_first();   // the state, as what a reset sets it to
  void reset(Index row);  // to the first state

  // Multiply-adds of a step.
  double work() const { return work_; }

 private:
  CellTraits traits_;
  void (*step_)(const StepArguments<T>& arguments, Worker& worker);
  Index rows_, hidden_;
  double work_;
  StepTeam team_;
  std::vector<Buffer> packed_;
  std::optional<PackedNet<T>> net_;  // of 16 bits, in place of packed_
  States<Buffer> state_, first_;     // (L, B, H): between two steps, and what a reset sets it to
  Buffer h_next_;                    // of the step that runs; c is written where it is read
  Buffer operand_, kept_;
  unsigned steps_ = 0;
  std::vector<StepArguments<T>> layers_;
  struct Int8 {
    Int8Net net;
    void (*step)(const StepArguments<float>& arguments, const Int8Direction& direction, Worker& worker);
    std::vector<Int8Workspace> workspace;  // of each layer
  };
  std::unique_ptr<Int8> int8_;

  void pack(const RecurrentConfig& config, const Weights<T>& weights, StepArguments<T>& a);
  void run_int8(int threads);

  // Of a buffer of h, of T, or of c, of its accumulator.
  template <class Item>
  StateRows<Item> rows_of(const Buffer& state, std::size_t layer) const {
    return {state.as<Item>() + static_cast<Index>(layer) * rows_ * hidden_, hidden_};
  }
  // visit(number of the state, of what type it is) for each.
  template <class Visit>
  void each_state(const Visit& visit) const {
    visit(0, T{});
    if (traits_.states == 2) visit(1, Accumulator<T>{});
  }
};

}  // namespace fusedrnn
