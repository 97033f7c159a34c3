// The drivers of one type of numbers: compiled once for each, see instance.cu.
#pragma once
#include "cuda/engine.h"
#include "cuda/runtime/number.h"

namespace fusedrnn {

template <class T>
struct Instance {
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
  static void add_squares(const Place& place, const ClippedArray& array, double* partial);
  static void scale(const Place& place, const ClippedArray& array, const double* norm, double limit);
};

}  // namespace fusedrnn
