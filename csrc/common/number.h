// The types of the arrays: float, double, and two of 16 bits that are only ever loaded, stored and multiplied by a
// GEMM.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/attributes.h"
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fusedrnn {

struct Bfloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// What numbers of a type are added up in, and what cell states and gates are kept in.
template <class T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<Bfloat16> {
  using type = float;
};
template <>
struct AccumulatorOf<Float16> {
  using type = float;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// What a tape on the CPU keeps of an activated gate.
struct Gate16 {
  std::uint16_t bits;
};
template <class T>
struct GateOf {
  using type = Accumulator<T>;
};
template <>
struct GateOf<Bfloat16> {
  using type = Gate16;
};
template <class T>
using Gate = typename GateOf<T>::type;

namespace {

FUSEDRNN_INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
FUSEDRNN_INLINE float float_of(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Adds half of the last place kept, a tie going to the even neighbour, and drops `places` bits.
FUSEDRNN_INLINE std::uint32_t rounded_off(std::uint32_t bits, int places) {
  return (bits + (1u << (places - 1)) - 1 + (bits >> places & 1)) >> places;
}

FUSEDRNN_INLINE float widen(float value) { return value; }
FUSEDRNN_INLINE double widen(double value) { return value; }
FUSEDRNN_INLINE float widen(Bfloat16 value) { return float_of(std::uint32_t(value.bits) << 16); }
FUSEDRNN_INLINE float widen(Float16 value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const std::uint32_t sign = std::uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | magnitude << 13);  // infinite or nan
  // Denormals come out normal by a multiplication, which is exact.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
#endif
}

template <class T>
FUSEDRNN_INLINE T narrow(Accumulator<T> value) {
  return value;
}
template <>
FUSEDRNN_INLINE Bfloat16 narrow<Bfloat16>(float value) {
  const std::uint32_t bits = bits_of(value);
  if (value != value) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<std::uint16_t>(rounded_off(bits, 16))};
}
template <>
FUSEDRNN_INLINE Float16 narrow<Float16>(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const std::uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (value != value) return {static_cast<std::uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<std::uint16_t>(sign | 0x7c00)};  // 65520 and above are infinite
  if (magnitude < 0x38800000) {  // below 2^-14: a sum whose last place is 2^-24 rounds it
    const std::uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    return {static_cast<std::uint16_t>(sign | small)};
  }
  return {static_cast<std::uint16_t>(sign | (rounded_off(magnitude, 13) - (112u << 10)))};
#endif
}

}  // namespace
}  // namespace fusedrnn
