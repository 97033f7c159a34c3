// A recurrence whose input is x and what attention reads from a memory with the h before the step (Bahdanau et al.
// 2015): the recurrence's drivers with a late input, and the kernels of additive attention.
#pragma once
#include <memory>
#include <vector>

#include "cpu/layers/packed.h"
#include "cpu/layers/recurrent.h"
#include "ops/additive_attention/run.h"

namespace fusedrnn {

struct DecoderConfig {
  RecurrentConfig net;  // of one layer and direction; its input is x and the context, its seed that of the draws
  Index features = 1, size = 1;  // M and A
  bool hard = false;             // attention of one location
  Index x_size() const { return net.input_size - features; }
};

template <class Real>
struct DecoderCall {
  ForwardCall<Real> net;
  AttentionArrays<const Real> attention;
  AttentionSizes<Real> memory;
  Sequence<Real> context;  // (T, B, M): written
  // With a tape, written: (T, B, S), and with hard attention three of (T, B).
  Sequence<Real> shares;
  Sequence<std::int64_t> location;
  Sequence<Real> log_prob, entropy;
  bool draw = false;  // hard attention's locations; else it takes the most probable ones
};

// What backpropagation needs. The caller keeps x, y, context, memory, what the call's pointers say was written, and the
// parameters alive and unchanged.
template <class Real>
struct DecoderTape {
  Tape<Real> net;
  DecoderCall<Real> call;
  ProjectedMemory<Real> memory;  // the keys alone
  std::size_t bytes() const { return net.bytes() + memory.key_bytes(); }
};

template <class Real>
struct DecoderGradients {
  BackwardCall<Real> net;
  Sequence<const Real> dcontext, dlog_prob, dentropy;  // data null: zeros
  AttentionArrays<Real> attention;                     // added to where the net's are
  Sequence<Real> dmemory;                              // (S, B, M): written
};

// Both return false when interrupted. The call is moved into the tape, whose net has its config, if there is one.
template <class Real>
bool run_decoder_forward(const DecoderConfig& config, DecoderCall<Real>& call, DecoderTape<Real>* tape);
template <class Real>
bool run_decoder_backward(const DecoderConfig& config, const DecoderTape<Real>& tape,
                          const DecoderGradients<Real>& gradients);

// A decoder that is run step by step. Rows may be chosen anew, in any order and number: the memory is indexed.
template <class Real>
class DecoderStream {
 public:
  using real = Real;
  // The weights are packed and the memory is copied and projected, here. False from `begin` when interrupted.
  DecoderStream(const DecoderConfig& config, const std::vector<Weights<Real>>& weights,
                const AttentionArrays<const Real>& attention, AttentionSizes<Real> memory, int threads);
  bool begin(const AttentionArrays<const Real>& attention, const Interrupt& interrupt);

  Index rows() const { return static_cast<Index>(memory_row_.size()); }
  Index locations() const { return memory_.locations; }
  // x (N, I) -> y (N, H), context (N, M), shares (N, S).
  bool step(StateRows<const Real> x, Real* y, Real* context, Real* shares, int threads, const Interrupt& interrupt);
  void select(const std::vector<Index>& rows);
  void read_state(int state, Real* to) const;  // (N, H)
  void write_state(int state, const StateRows<const Real>& from);

 private:
  DecoderConfig config_;
  PackedNet<Real> net_;
  AttentionSizes<Real> memory_;
  ProjectedMemory<Real> projected_;
  PackedQuery<Real> query_;
  int states_;
  std::vector<Index> memory_row_;  // row -> row of the memory
  std::vector<Real> state_[kMaxStates], next_[kMaxStates];
};

}  // namespace fusedrnn
