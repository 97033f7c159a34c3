// Element-wise functions around the steps: packing weights, gathering rows, scattering gradients, dropout, partial
// sums. Each is handed to Backend::for_each; see backend.h.
#pragma once
#include "common/dropout_hash.h"
#include "cuda/runtime/backend.h"
#include "cuda/stepwise/forward_step.h"

namespace fusedrnn {
namespace {

// Which gate's weights feed a slot: four bits a slot, so that no array need be indexed in a kernel.
class GateMap {
 public:
  void set(int slot, int gate) { map_ = (map_ & ~(15u << 4 * slot)) | unsigned(gate) << 4 * slot; }
  FUSEDRNN_INLINE Index gate(Index slot) const { return map_ >> 4 * slot & 15; }
  FUSEDRNN_INLINE bool has(Index slot) const { return gate(slot) != 15; }

 private:
  unsigned map_ = ~0u;
};

template <class To>
struct Fill {
  To* data;
  Index width;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index c) const { data[r * width + c] = To(); }
};

// Rows of a weight matrix in the order of slots.
template <class T>
struct PackRows {
  const T* from;
  T* to;
  GateMap map;
  Index hidden, columns;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index c) const {
    to[r * columns + c] = from[(map.gate(r / hidden) * hidden + r % hidden) * columns + c];
  }
};

// A slot's constant: the biases of the products that feed it.
template <class T>
struct PackBias {
  const T *input, *recurrent;  // null: none
  Accumulator<T>* to;
  GateMap input_map, recurrent_map;
  Index hidden;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index slot, Index u) const {
    Accumulator<T> sum = 0;
    if (input && input_map.has(slot)) sum += widen(input[input_map.gate(slot) * hidden + u]);
    if (recurrent && recurrent_map.has(slot)) sum += widen(recurrent[recurrent_map.gate(slot) * hidden + u]);
    to[slot * hidden + u] = sum;
  }
};

template <class From, class To>
struct CopyRows {
  const From* from;  // null: zeros
  Index from_outer, from_row;
  To* to;
  Index to_outer, to_row;
  FUSEDRNN_HOST_DEVICE void operator()(Index o, Index r, Index c) const {
    to[o * to_outer + r * to_row + c] =
        from ? narrow<To>(widen(from[o * from_outer + r * from_row + c])) : narrow<To>(Accumulator<To>(0));
  }
};

struct KeepLengths {
  const std::int64_t* from;
  std::int64_t* to;
  Index steps;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index b) const {
    to[b] = from[b] < 0 ? 0 : from[b] > steps ? steps : from[b];
  }
};

struct KeepReset {
  const bool* from;
  Index time, row;
  bool* to;
  Index rows;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index t, Index b) const { to[t * rows + b] = from[t * time + b * row]; }
};

struct KeepCall {
  std::uint64_t *calls, *kept;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index, Index) const { *kept = fetch_add(calls, 1); }
};

// Rows of a sequence in step order, zero past a length: what stands there may be nan and must not be multiplied.
template <class T>
struct GatherRows {
  Steps steps;
  Index direction;
  Index first;
  SequenceOf<const T> from;
  T* to;
  Index width;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index c) const {
    const Index s = first + r / steps.rows, b = r % steps.rows, n = steps.length(b);
    to[r * width + c] = s < n ? from.at(steps.time(direction, s, n), b)[c] : narrow<T>(Accumulator<T>(0));
  }
};

// h before each step of a chunk: the initial state's, or the output of the step before; 0 where the link is cut.
template <class T>
struct GatherPrevious {
  Steps steps;
  Index first, hidden, capacity;
  SequenceOf<const T> y;
  const T* h0;  // (D, B, H) or null: zeros
  T* to;        // (D, capacity, H)
  FUSEDRNN_HOST_DEVICE void operator()(Index d, Index r, Index u) const {
    const Index s = first + r / steps.rows, b = r % steps.rows, n = steps.length(b);
    T value = narrow<T>(Accumulator<T>(0));
    if (s < n && !steps.cut(d, s, b, n)) {
      if (s > 0)
        value = y.at(steps.time(d, s - 1, n), b)[d * hidden + u];
      else if (h0)
        value = h0[(d * steps.rows + b) * hidden + u];
    }
    to[(d * capacity + r) * hidden + u] = value;
  }
};

// Gradients of x from step order back to time.
template <class To>
struct ScatterRows {
  using A = Accumulator<To>;
  Steps steps;
  Index direction;
  Index first;
  const A* from;
  SequenceOf<To> to;
  Index width;
  bool add;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index c) const {
    const Index s = first + r / steps.rows, b = r % steps.rows, n = steps.length(b);
    To& target = to.at(steps.time(direction, s, n), b)[c];
    A value = s < n ? from[r * width + c] : A(0);
    if (add) value += widen(target);
    target = narrow<To>(value);
  }
};

template <class T>
struct ApplyDropout {
  const std::uint64_t* call;
  std::uint64_t seed, threshold;
  int layer;
  Accumulator<T> scale;
  const T* from;
  T* to;
  Index rows, width;
  const Index* times;  // (T, B): of steps; null: their own number
  FUSEDRNN_HOST_DEVICE void operator()(Index step, Index b, Index unit) const {
    const Index t = times ? times[step * rows + b] : step, i = (step * rows + b) * width + unit;
    const std::uint64_t row = DropoutHash::next(DropoutHash::next(DropoutHash::stream(seed, *call, layer), t), b);
    to[i] = narrow<T>(DropoutHash::keeps(row, unit, threshold) ? widen(from[i]) * scale : Accumulator<T>(0));
  }
};

// Adds column sums of a matrix, by parts of its rows, to partial sums (outer, kParts, columns).
template <class T>
struct SumRows {
  const T* from;
  Index outer_rows, rows, columns;
  Accumulator<T>* partial;
  FUSEDRNN_HOST_DEVICE void operator()(Index o, Index part, Index c) const {
    Accumulator<T> sum = 0;
    for (Index r = part_begin(rows, part); r < part_begin(rows, part + 1); ++r)
      sum += widen(from[(o * outer_rows + r) * columns + c]);
    partial[(o * kParts + part) * columns + c] += sum;
  }
};

// A finished gradient to the caller's array, from the order of slots to that of gates: rounded once.
template <class T>
struct UnpackRows {
  const Accumulator<T>* from;
  T* to;
  GateMap map;
  Index hidden, columns;
  bool add;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index r, Index c) const {
    T& target = to[(map.gate(r / hidden) * hidden + r % hidden) * columns + c];
    target = narrow<T>((add ? widen(target) : Accumulator<T>(0)) + from[r * columns + c]);
  }
};

// The same of partial sums (kParts, slots, H), added up in their order.
template <class T>
struct UnpackSums {
  const Accumulator<T>* partial;
  T* to;
  GateMap map;
  Index slots, hidden;
  bool add;
  FUSEDRNN_HOST_DEVICE void operator()(Index, Index slot, Index u) const {
    if (!map.has(slot)) return;
    Accumulator<T> sum = 0;
    for (Index part = 0; part < kParts; ++part) sum += partial[(part * slots + slot) * hidden + u];
    T& target = to[map.gate(slot) * hidden + u];
    target = narrow<T>((add ? widen(target) : Accumulator<T>(0)) + sum);
  }
};

}  // namespace
}  // namespace fusedrnn
