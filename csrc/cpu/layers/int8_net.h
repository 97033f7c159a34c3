// The parameters of a net with weights of 8 bits, for steppers and frozen layers.
#pragma once
#include <vector>

#include "common/int8_layout.h"
#include "cpu/int8.h"
#include "cpu/runtime/pool.h"
#include "net/config.h"

namespace fusedrnn {

// Only read once it is made: for several threads at a time.
class Int8Net {
 public:
  // Rounds the weights, which must be finite, layers * directions of them. Throws std::bad_alloc.
  Int8Net(const RecurrentConfig& config, const std::vector<Weights<float>>& weights);
  // A copy of another's memory, which has bytes_of(config).
  Int8Net(const RecurrentConfig& config, const void* memory);
  static std::size_t bytes_of(const RecurrentConfig& config);

  const unsigned char* direction(int index) const { return directions_[static_cast<std::size_t>(index)]; }
  const void* memory() const { return memory_.data(); }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  Buffer memory_;                                 // which may be longer
  std::vector<const unsigned char*> directions_;  // (layers * directions,)

  explicit Int8Net(const RecurrentConfig& config);
};

bool all_finite(const float* values, Index count);

// A row of weights in 8 bits: the scale, and `count` integers in [-128, 127]. A row that consists of multiples of one
// number, from -128 to 127 times, is kept: what a model's own integers stand for. Any other row's largest magnitude
// becomes 127.
float quantize_row(const float* row, Index count, std::int8_t* integers);

// Memory of the directions of a layer.
class Int8Workspace {
 public:
  // For `input_rows` rows of x at once and `rows` rows of h, on as many threads.
  void allocate(const Int8Layout& layout, Index input_rows, Index rows, int threads);
  Int8Direction direction(const unsigned char* packed) const {
    return {packed, left_.as<std::uint64_t>(), groups_, sums_.as<float>(), kept_.as<float>()};
  }
  int threads() const { return threads_; }

 private:
  Buffer left_, sums_, kept_;
  Index groups_ = 0;
  int threads_ = 0;
};

}  // namespace fusedrnn
