// Activated gates as a tape keeps them: as they are, or of 16-bit layers in 16 bits. A sigmoid or a tanh is a number of
// fixed point then, which near saturation leaves more of its slope s (1 - s) than a bfloat16 does.
#pragma once
#include "cells/clip.h"
#include "cpu/simd/storage.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

FUSEDRNN_INLINE void store_gate(Vec<float> a, GateRange, float* to) { a.store(to); }
FUSEDRNN_INLINE void store_gate(Vec<double> a, GateRange, double* to) { a.store(to); }
FUSEDRNN_INLINE Vec<float> load_gate(GateRange, const float* from) { return Vec<float>::load(from); }
FUSEDRNN_INLINE Vec<double> load_gate(GateRange, const double* from) { return Vec<double>::load(from); }

// The codes of 1 and of nan.
constexpr float kept_one(GateRange range) { return range == GateRange::sigmoid ? 65534.0f : 32767.0f; }
constexpr std::uint32_t kept_nan(GateRange range) { return range == GateRange::sigmoid ? 0xffff : 0x8000; }

// To the nearest integer: a sum whose last place is 1, and whose lower bits are that integer.
FUSEDRNN_INLINE WideBits fixed_point(Vec<float> a, GateRange range) {
  const WideBits bits = (WideBits)(a * Vec<float>(kept_one(range)) + Vec<float>(0x1.8p23f)).native;
  return a.native == a.native ? bits & 0xffffu : kept_nan(range) - WideBits{};
}
FUSEDRNN_INLINE Vec<float> from_fixed_point(WideBits kept, GateRange range) {
  using Bits = Vec<float>::Bits;
  const Bits number = range == GateRange::sigmoid ? (Bits)kept : (Bits)(kept << 16) >> 16;
  const Vec<float> value(__builtin_convertvector(number, Vec<float>::Native) * (1 / kept_one(range)));
  return Vec<float>(kept == kept_nan(range) ? Vec<float>(__builtin_nanf("")).native : value.native);
}

FUSEDRNN_INLINE void store_gate(Vec<float> a, GateRange range, Gate16* to) {
  const NarrowBits bits =
      range == GateRange::any ? narrowed(a) : __builtin_convertvector(fixed_point(a, range), NarrowBits);
  __builtin_memcpy(to, &bits, sizeof bits);
}
FUSEDRNN_INLINE Vec<float> load_gate(GateRange range, const Gate16* from) {
  NarrowBits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return range == GateRange::any ? widened(bits) : from_fixed_point(__builtin_convertvector(bits, WideBits), range);
}

// The activations of a clip's limits as a tape of these keeps them, for comparisons with its gates.
template <class V, class Gate>
FUSEDRNN_INLINE Clipped<V> as_kept(const Clipped<V>& clip, const Gate*) {
  return clip;
}
FUSEDRNN_INLINE Clipped<Vec<float>> as_kept(Clipped<Vec<float>> clip, const Gate16*) {
  const auto kept = [](Vec<float> a, GateRange range) { return from_fixed_point(fixed_point(a, range), range); };
  clip.limit = rounded<Bfloat16>(clip.limit);
  clip.sigmoid_low = kept(clip.sigmoid_low, GateRange::sigmoid);
  clip.sigmoid_high = kept(clip.sigmoid_high, GateRange::sigmoid);
  clip.tanh_high = kept(clip.tanh_high, GateRange::tanh);
  return clip;
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
