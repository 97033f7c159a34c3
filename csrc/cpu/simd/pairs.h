// Neighbours in memory: a pair of numbers for each lane, from wherever it lies.
#pragma once
#include <utility>

#include "common/arguments.h"
#include "cpu/simd/vec.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// Two float32 numbers, as one of 64 bits.
FUSEDRNN_INLINE double both(const float* from) {
  double bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return bits;
}

template <class Real, int... lane, int... pair>
FUSEDRNN_INLINE void load_pairs(const Real* from, const Index* at, Vec<Real>& left, Vec<Real>& right,
                                std::integer_sequence<int, lane...>, std::integer_sequence<int, pair...>) {
  using Native = typename Vec<Real>::Native;
  if constexpr (sizeof(Real) == sizeof(float)) {
    using Wide = typename Register<double, kVectorBytes>::Native;
    const Vec<Real> first((Native)Wide{both(from + at[pair])...}),
        second((Native)Wide{both(from + at[sizeof...(pair) + pair])...});
    left = Vec<Real>(FUSEDRNN_SHUFFLE(first, second, 2 * lane...));
    right = Vec<Real>(FUSEDRNN_SHUFFLE(first, second, (2 * lane + 1)...));
  } else {
    left = Vec<Real>(Native{from[at[lane]]...});
    right = Vec<Real>(Native{from[at[lane] + 1]...});
  }
}

template <class Real, int... lane>
FUSEDRNN_INLINE void store_pairs(const Vec<Real>& left, const Vec<Real>& right, Real* to,
                                 std::integer_sequence<int, lane...>) {
  constexpr int lanes = Vec<Real>::lanes;
  Vec<Real>(FUSEDRNN_SHUFFLE(left, right, (lane / 2 + lane % 2 * lanes)...)).store(to);
  Vec<Real>(FUSEDRNN_SHUFFLE(left, right, (lanes / 2 + lane / 2 + lane % 2 * lanes)...)).store(to + lanes);
}

// Lane i of `left` is from[at[i]], and that of `right` its neighbour. By loads into registers alone: a processor may
// take a store of any numbers on the way for one that a later load depends on (4K aliasing).
template <class Real>
FUSEDRNN_INLINE void load_pairs(const Real* from, const Index* at, Vec<Real>& left, Vec<Real>& right) {
  constexpr int lanes = Vec<Real>::lanes;
  load_pairs(from, at, left, right, std::make_integer_sequence<int, lanes>(),
             std::make_integer_sequence<int, lanes / 2>());
}

// As load_pairs, the other way: to[2 i] and to[2 i + 1] become lane i of `left` and of `right`.
template <class Real>
FUSEDRNN_INLINE void store_pairs(const Vec<Real>& left, const Vec<Real>& right, Real* to) {
  store_pairs(left, right, to, std::make_integer_sequence<int, Vec<Real>::lanes>());
}

// Adds to a pair of neighbours.
template <class Real>
FUSEDRNN_INLINE void add_to_pair(Real* to, Real factor, const Real* pair) {
  using Pair = typename Register<Real, 2 * sizeof(Real)>::Native;
  Pair sum, terms;
  __builtin_memcpy(&sum, to, sizeof sum);
  __builtin_memcpy(&terms, pair, sizeof terms);
  sum += factor * terms;
  __builtin_memcpy(to, &sum, sizeof sum);
}

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
