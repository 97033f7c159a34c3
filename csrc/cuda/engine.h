// What crosses from the bindings to an engine: sizes, strides and pointers to the caller's memory. Nothing here owns
// memory, and nothing knows whether it lies on a device or, in the build that tests use, on the host.
#pragma once
#include <cstdint>
#include <vector>

#include "common/arguments.h"
#include "common/type.h"
#include "net/parameters.h"

namespace fusedrnn {

// The device and the stream that run a call.
struct Place {
  int device = 0;
  void* stream = nullptr;
};

struct NetConfig : RecurrentConfig {
  std::vector<Parameter> parameters;
  Type type = Type::float32;
  bool tf32 = false;        // products of floats may round their operands to 10 bits of mantissa
  int multiprocessors = 1;  // of the device
  bool loop_inside = true;  // block programs: all steps in one kernel, where the device holds all of its blocks at once
};

// A state array (layers * directions, B, H): the first state, h, of the net's type, another of its accumulator's. Null
// data: zeros, or unwanted.
struct StateView {
  void* data = nullptr;
  Index layer = 0, row = 0;
};

// Norms (layers * directions, T, B) of the gradients of a state, of the net's type. Null data: unwanted.
struct NormsView {
  void* data = nullptr;
  Index layer = 0, time = 0, row = 0;
};

struct NetForward {
  Index steps = 0, rows = 0;
  bool training = false;
  bool persistent = false;  // run the steps by block programs; DeviceKernels::persistent_refusal must give null
  Index recompute = 0;      // training: keep states every so many steps only; 0: keep all
  std::vector<Weights<void>> weights;  // layers * directions
  SequenceView x, y;
  States<StateView> initial, final;
  const std::int64_t* lengths = nullptr;  // (B,) or null; taken as if clamped to [0, steps]
  const bool* reset = nullptr;            // (T, B) with the strides below, or null
  Index reset_time = 0, reset_row = 0;
  const bool* mask = nullptr;  // false where a step is skipped: likewise
  Index mask_time = 0, mask_row = 0;
  std::uint64_t* calls = nullptr;  // training with dropout: counts the calls, in the arrays' memory
  void* kept = nullptr;            // training: what the tape keeps; DeviceKernels::kept_bytes
  void* workspace = nullptr;       // DeviceKernels::forward_bytes
};

// With the NetForward whose `kept` it reads; x, y and the weights are as they were then. A null array: unwanted.
struct NetBackward {
  SequenceView dy, dx;
  States<StateView> dfinal, dinitial;
  std::vector<WeightGradients<void>> gradients;  // layers * directions
  bool accumulate = false;                       // add to the gradients instead of writing them
  States<NormsView> norms;                       // of each state of the cell, or of none
  void* workspace = nullptr;                     // DeviceKernels::backward_bytes
};

struct ClippedArray {
  void* data;
  Index size;
  Type type;
};

// An engine of one kind of memory: what is of no type of numbers. The rest is in kernels.h.
struct Engine {
  static const char* name();
  static std::vector<CellTraits> cells();

  // Scales all arrays by min(1, limit / norm) and writes the norm of all of them. workspace: doubles, clip_bytes.
  static std::size_t clip_bytes(Index arrays);
  static void clip(const Place& place, const std::vector<ClippedArray>& arrays, double limit, double* norm,
                   void* workspace);

  static int multiprocessors(int device);
  static bool capturing(const Place& place);
};

}  // namespace fusedrnn
