// What the headers of the instruction sets are written with. Each of them gives the width of a register, how many there
// are, whether fma rounds once, and in namespace `native`:
//   fma(a, b, c)               a * b + c
//   at_least, at_most(a, b)    a, bounded by b from below or above; a nan in `a` stays
//   choose_bits(mask, a, b)    the bits of a where the mask's are set, else those of b
//   keep_in_register(a)        a value that was loaded is not loaded again by each use
//   load_first(from, n), store_first(to, n, a)
//                              the first n lanes, 0 <= n <= lanes: no byte past them is touched; the other loaded lanes
//                              are zero
#pragma once
#include <cstdint>

#include "common/attributes.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Native holds the numbers, Bits the same register as signed integers.
template <class Real, int kBytes>
struct Register;
template <int kBytes>
struct Register<float, kBytes> {
  typedef float Native __attribute__((vector_size(kBytes)));
  typedef std::int32_t Bits __attribute__((vector_size(kBytes)));
};
template <int kBytes>
struct Register<double, kBytes> {
  typedef double Native __attribute__((vector_size(kBytes)));
  typedef std::int64_t Bits __attribute__((vector_size(kBytes)));
};

// What an instruction set may do without an instruction of its own.
namespace portable {

template <class Native>
FUSEDRNN_INLINE Native fma(Native a, Native b, Native c) {
  return a * b + c;
}
template <class Bits>
FUSEDRNN_INLINE Bits choose_bits(Bits mask, Bits a, Bits b) {
  return (b & ~mask) | (a & mask);
}

// A register of 16 bytes, lane by lane.
template <class Real>
FUSEDRNN_INLINE auto load_first(const Real* from, int count) {
  typename Register<Real, 16>::Native loaded{};
  for (int lane = 0; lane < 16 / int(sizeof(Real)); lane++) {
    if (lane < count) loaded[lane] = from[lane];
  }
  return loaded;
}
template <class Real>
FUSEDRNN_INLINE void store_first(Real* to, int count, typename Register<Real, 16>::Native a) {
  for (int lane = 0; lane < 16 / int(sizeof(Real)); lane++) {
    if (lane < count) to[lane] = a[lane];
  }
}

}  // namespace portable
}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
