// A matrix product as the drivers describe it, and as a library takes it that stores columns.
#pragma once
#include "common/arguments.h"
#include "common/number.h"

namespace fusedrnn {

// C (m, n) = op(A) . op(B) + beta C, column-major; strides between columns and between products, in elements.
struct ColumnMajor {
  Index m, n, k;
  bool a_transposed, b_transposed;
  const void *a, *b;
  void* c;
  Index a_stride, b_stride, c_stride;
  Index batch, a_batch, b_batch, c_batch;
  bool add;  // beta: 1 or 0
};

namespace {

// C (m, n) = A (m, k) . B (k, n) + beta C, row-major; leading dimensions and batch strides in elements.
template <class T>
struct Gemm {
  Index m, n, k;
  const T* a;
  Index a_row;  // stride between rows of A as it is stored
  bool a_transposed;
  const T* b;
  Index b_row;
  bool b_transposed;
  Accumulator<T>* c;
  Index c_row;
  bool add = false;  // beta: 1 or 0
  Index batch = 1, a_batch = 0, b_batch = 0, c_batch = 0;
};

// The transposed product, its factors exchanged.
template <class T>
ColumnMajor column_major(const Gemm<T>& g) {
  return {g.n,     g.m,     g.k,     g.b_transposed, g.a_transposed, g.b,       g.a,       g.c,
          g.b_row, g.a_row, g.c_row, g.batch,        g.b_batch,      g.a_batch, g.c_batch, g.add};
}

}  // namespace
}  // namespace fusedrnn
