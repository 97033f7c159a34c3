// What one build of the device engine, for one type of numbers, offers to the rest: compiled once for each,
// instance.cu. The operations' table is in operations.h beside this.
#pragma once
#include "common/number.h"
#include "cuda/engine.h"
#include "ops/additive_attention/arguments.h"

namespace fusedrnn {

struct DeviceKernels {
  // Null, or why the block programs do not run such calls; see block_program.h. `at_once`: with all steps in one
  // kernel.
  const char* (*persistent_refusal)(const NetConfig& config, Index rows, bool training, bool at_once);
  std::size_t (*kept_bytes)(const NetConfig& config, const NetForward& call);
  std::size_t (*forward_bytes)(const NetConfig& config, const NetForward& call);
  std::size_t (*backward_bytes)(const NetConfig& config, const NetForward& call, bool norms);
  void (*forward)(const Place& place, const NetConfig& config, const NetForward& call);
  void (*backward)(const Place& place, const NetConfig& config, const NetForward& call, const NetBackward& gradient);
  // The same of a decoder, whose input is x and attention's context; of one layer and direction, without dropout, masks
  // and resets. What it keeps beside attention's arrays is kept_bytes.
  std::size_t (*decoder_bytes)(const NetConfig& config, const NetForward& call, const AdditiveAttentionCall& attention,
                               bool backward);
  void (*decoder_forward)(const Place& place, const NetConfig& config, const NetForward& call,
                          const AdditiveAttentionCall& attention);
  void (*decoder_backward)(const Place& place, const NetConfig& config, const NetForward& call,
                           const AdditiveAttentionCall& attention, const NetBackward& gradient);
  // Parts of Engine::clip.
  void (*add_squares)(const Place& place, const ClippedArray& array, double* partial);
  void (*scale)(const Place& place, const ClippedArray& array, const double* norm, double limit);
};

// Table: DeviceKernels, or DeviceOperations.
template <class Table, class T>
const Table& table_of_number();
template <class Table>
const Table& table_of(Type type);

}  // namespace fusedrnn
