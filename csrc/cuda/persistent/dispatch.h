// The cells and capacities that block programs are compiled for: the one list that plan, kernels and tests go by.
// A per-unit parameter needs a gradient of its own, and reset-before GRUs two exchanges a step: those run step by step
// elsewhere.
#pragma once
#include <cstring>
#include <type_traits>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cuda/persistent/plan.h"

namespace fusedrnn {
namespace persistent {
namespace {

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<Cell>) for the cell of this name and gives its answer, or `none` if there is no such program.
template <class R, class F>
R with_cell(const char* name, R none, F f) {
  if (!std::strcmp(name, Lstm<false, false>::traits.name)) return f(Type<Lstm<false, false>>());
  if (!std::strcmp(name, Lstm<false, true>::traits.name)) return f(Type<Lstm<false, true>>());
  if (!std::strcmp(name, Gru<true>::traits.name)) return f(Type<Gru<true>>());
  return none;
}

// Calls f(std::integral_constant<int, capacity>) for one of kCapacities.
template <class R, class F>
R with_capacity(int capacity, R none, F f) {
  if (capacity == 256) return f(std::integral_constant<int, 256>());
  if (capacity == 512) return f(std::integral_constant<int, 512>());
  if (capacity == 768) return f(std::integral_constant<int, 768>());
  if (capacity == 1024) return f(std::integral_constant<int, 1024>());
  return none;
}

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
