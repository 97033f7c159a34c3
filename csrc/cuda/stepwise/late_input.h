// The last columns of a layer's input where they are known only once a step begins, as an attention's context is; of
// one layer and direction, without masks, resets or recomputation.
#pragma once
#include "cuda/runtime/arena.h"
#include "cuda/stepwise/forward_step.h"

namespace fusedrnn {
namespace {

template <class T>
class LateInput {
 public:
  using A = Accumulator<T>;
  virtual ~LateInput() = default;

  virtual Index size() const = 0;                                         // columns
  virtual SequenceOf<T> rows() const = 0;                                 // (T, B, size): zeros past a row's length
  virtual void lay_out(Arena& arena, Index chunk) = 0;                    // for chunks of so many steps
  virtual void begin(Backend& backend, const std::int64_t* lengths) = 0;  // of the rows' steps, or null
  virtual void make(Backend& backend, Index step, const T* h) = 0;        // forward: writes the step's rows
  // Backward: before the steps of a chunk, whose h before each step are (steps, B, H); after a step, from the gradient
  // of its late input (B, size), adding to dh (B, H), that of the h before it; at the chunk's end; and at the end.
  virtual void begin_chunk(Backend& backend, Index first, Index last, const T* h) = 0;
  virtual void take(Backend& backend, Index step, const A* gradient, A* dh) = 0;
  virtual void end_chunk(Backend& backend, Index first, Index last, const T* h) = 0;
  virtual void end(Backend& backend) = 0;
};

}  // namespace
}  // namespace fusedrnn
