// What crosses from the bindings to an engine: sizes, strides and pointers to the caller's memory. Nothing here owns
// memory, and nothing knows whether it lies on a device or, in the build that tests use, on the host.
#pragma once
#include <cstdint>
#include <vector>

#include "common/arguments.h"
#include "net/parameters.h"

namespace fusedrnn {

enum class Type { float32, float64, bfloat16, float16 };

// Where work goes.
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

// A sequence array (T, B, units) of the net's type; strides in elements. Null data: absent.
struct SequenceView {
  void* data = nullptr;
  Index time = 0, row = 0;
};
// A state array (layers * directions, B, H): h of the net's type, c of its accumulator's. Null data: zeros, or
// unwanted.
struct StateView {
  void* data = nullptr;
  Index layer = 0, row = 0;
};

struct NetForward {
  Index steps = 0, rows = 0;
  bool training = false;
  bool persistent = false;             // run the steps by block programs; Engine::persistent_refusal must be null
  Index recompute = 0;                 // training: keep states every so many steps only; 0: keep all
  std::vector<Weights<void>> weights;  // layers * directions
  SequenceView x, y;
  StateView h0, c0, hn, cn;
  const std::int64_t* lengths = nullptr;  // (B,) or null; taken as if clamped to [0, steps]
  const bool* reset = nullptr;            // (T, B) with the strides below, or null
  Index reset_time = 0, reset_row = 0;
  const bool* mask = nullptr;  // false where a step is skipped: likewise
  Index mask_time = 0, mask_row = 0;
  std::uint64_t* calls = nullptr;  // training with dropout: counts the calls, in the arrays' memory
  void* kept = nullptr;            // training: what the tape keeps; Engine::kept_bytes
  void* workspace = nullptr;       // Engine::forward_bytes
};

// With the NetForward whose `kept` it reads; x, y and the weights are as they were then. A null array: unwanted.
struct NetBackward {
  SequenceView dy, dx;
  StateView dhn, dcn, dh0, dc0;
  std::vector<WeightGradients<void>> gradients;  // layers * directions
  bool accumulate = false;                       // add to the gradients instead of writing them
  void* workspace = nullptr;                     // Engine::backward_bytes
};

// The linear map y = x W^T + b; see linear.h beside the CPU's. Backward where dweight is given.
struct LinearCall {
  Type type = Type::float32;
  Index rows = 0, in_features = 0, out_features = 0;
  const void *x = nullptr, *weight = nullptr, *bias = nullptr;  // (rows, in), (out, in), (out,) or null
  void* y = nullptr;                                            // (rows, out)
  const void* dy = nullptr;
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr;
  void* workspace = nullptr;
};

// The softmax cross-entropy readout; see linear_cross_entropy.h beside the CPU's.
struct ReadoutCall {
  Type type = Type::float32;
  bool tf32 = false;
  Index rows = 0, hidden_size = 0, classes = 0;
  const void *x = nullptr, *weight = nullptr, *bias = nullptr;  // (rows, H), (classes, H), (classes,) or null
  const std::int64_t* targets = nullptr;                        // (rows,)
  std::int64_t ignore_index = 0;
  int reduction = 0;     // 0: mean, 1: sum, 2: none
  void* loss = nullptr;  // accumulator's type: one, or (rows,) for none
  void* normalizers =
      nullptr;  // accumulator's type, (2 * rows + 1,): maxima, logs of sums, number of targets that count
  // Backward.
  const void* dloss = nullptr;  // accumulator's type, one or (rows,), with its stride
  Index dloss_row = 0;
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr;
  void* workspace = nullptr;
};

struct ClippedArray {
  void* data;
  Index size;
  Type type;
};

// An engine of one kind of memory.
struct Engine {
  static const char* name();
  static std::vector<CellTraits> cells();

  // Null, or why the block programs do not run such calls; see block_program.h.
  // `at_once`: with all steps in one kernel.
  static const char* persistent_refusal(const NetConfig& config, Index rows, bool training, bool at_once);
  static std::size_t kept_bytes(const NetConfig& config, const NetForward& call);
  static std::size_t forward_bytes(const NetConfig& config, const NetForward& call);
  static std::size_t backward_bytes(const NetConfig& config, const NetForward& call);
  static void forward(const Place& place, const NetConfig& config, const NetForward& call);
  static void backward(const Place& place, const NetConfig& config, const NetForward& call,
                       const NetBackward& gradient);

  static std::size_t linear_bytes(const LinearCall& call);
  static void linear(const Place& place, const LinearCall& call);
  static std::size_t readout_bytes(const ReadoutCall& call);
  static void readout_forward(const Place& place, const ReadoutCall& call);
  static void readout_backward(const Place& place, const ReadoutCall& call);

  // Scales all arrays by min(1, limit / norm) and writes the norm of all of them. workspace: doubles, clip_bytes.
  static std::size_t clip_bytes(Index arrays);
  static void clip(const Place& place, const std::vector<ClippedArray>& arrays, double limit, double* norm,
                   void* workspace);

  static int multiprocessors(int device);
  static bool capturing(const Place& place);
};

}  // namespace fusedrnn
