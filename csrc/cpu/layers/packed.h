// The parameters of a net packed once, for many calls.
#pragma once
#include <atomic>
#include <vector>

#include "common/arguments.h"
#include "cpu/layers/recurrent.h"
#include "cpu/runtime/pool.h"

namespace fusedrnn {

// Elements of all packed phases of weight_hh, where each has `inner` elements a column.
Index recurrent_elements(const CellTraits& traits, Index blocks, Index inner);
// Bytes of one direction's packed weights, and where they stand in memory of so many.
template <class T>
std::size_t packed_bytes(const CellTraits& traits, Index input_size, Index hidden_size);
template <class T>
PackedWeights<T, Accumulator<T>> lay_out_packed(const CellTraits& traits, Index input_size, Index hidden_size,
                                                char* memory);

// Only read once it is made: for several threads at a time.
template <class T>
class PackedNet {
 public:
  // Packs the weights, layers * directions of them, on at most `threads` threads. Throws std::bad_alloc.
  PackedNet(const RecurrentConfig& config, const std::vector<Weights<T>>& weights, int threads);

  // Lets a call read its weights here. Every other one reads them in the reverse order: what one call read last the
  // next finds in the cache.
  void use_in(ForwardCall<T>& call) const {
    call.packed = directions_.data();
    call.reversed = turn_.fetch_add(1, std::memory_order_relaxed) % 2 != 0;
  }
  std::size_t bytes() const { return memory_.bytes(); }

  // Parameters that pack to the same: where two biases were added up, two of the same sum, the second of them 0 unless
  // T is narrow.
  void unpack(const RecurrentConfig& config, const std::vector<ParameterArrays<T>>& to) const;

 private:
  Buffer memory_;
  std::vector<Packed<T>> directions_;  // (layers * directions,)
  mutable std::atomic<unsigned> turn_{0};
};

}  // namespace fusedrnn
