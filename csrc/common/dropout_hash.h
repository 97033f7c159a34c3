// Dropout's mask: a hash of counters, so that it need not be stored and is the same on every device.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {

// The hash of a mask in stages, stream -> step -> row -> whether a unit is kept, so that a loop reuses the outer ones.
struct DropoutHash {
  // The finaliser of splitmix64 (Steele, Lea & Flood 2014): every input bit reaches every output bit.
  FUSEDRNN_INLINE static std::uint64_t mix(std::uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
  }
  FUSEDRNN_INLINE static std::uint64_t stream(std::uint64_t seed, std::uint64_t call, int layer) {
    return mix(mix(mix(seed) ^ call) ^ static_cast<std::uint64_t>(layer));
  }
  FUSEDRNN_INLINE static std::uint64_t next(std::uint64_t hash, Index index) {
    return mix(hash ^ static_cast<std::uint64_t>(index));
  }
  // Dropped where a uniform 53-bit number is below p.
  FUSEDRNN_INLINE static std::uint64_t threshold(double probability) {
    return static_cast<std::uint64_t>(probability * 9007199254740992.0);
  }
  FUSEDRNN_INLINE static bool keeps(std::uint64_t row, Index unit, std::uint64_t threshold) {
    return next(row, unit) >> 11 >= threshold;
  }
  FUSEDRNN_INLINE static double scale(double probability) { return probability < 1 ? 1 / (1 - probability) : 0; }
};

}  // namespace fusedrnn
