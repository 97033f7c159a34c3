// The micro-kernel of bfloat16: products of pairs of 16-bit numbers, summed in float32.
//
// Where the processor has no instruction for them, pairs are widened and added up in the order of one AMX tile: of each
// group of 32 steps of the inner dimension the even ones and the odd ones are chains of fused multiply-adds that begin
// at zero, and the sum of the two is added to that of the groups before. Products of two bfloat16 are exact in float32
// unless they overflow or are denormal, so that an instruction set without fused multiply-adds gives the same bits.
#pragma once
#include "cpu/gemm/pack.h"
#include "cpu/gemm/pair_left.h"
#include "cpu/gemm/tile_product.h"
#include "cpu/gemm/tile_shape.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// `widened`: the right operand as float32, or null: of block i the halves of pair p at
// widened + i * widened_block + (2 p + half) * 16.
struct PairProduct : Product<Bfloat16, float> {
  const float* widened = nullptr;
  Index widened_block = 0;
};

// A tile of a product, whose right operand's elements are Right.
template <class Right, int Rows, int Blocks>
struct PairTileOf {
  // Pairs by which a widened operand is prefetched from the second-level cache; fewer rows are bound by the loads.
  static constexpr Index kPrefetchPairs = 8;
  static constexpr int kPrefetchRows = 4;

  using V = Vec<float>;
  using Sums = V[Rows][Blocks * TileShape<float>::parts];
  static constexpr int parts = TileShape<float>::parts, vectors = Blocks * parts;
  const PairProduct& p;
  Index first_block, column;

  FUSEDRNN_INLINE const Right* right() const {
    if constexpr (std::is_same_v<Right, float>)
      return p.widened + first_block * p.widened_block + column;
    else
      return p.right + first_block * p.right_block + 2 * column;
  }
  // Vector v of the halves kHalf of a pair.
  template <int kHalf>
  FUSEDRNN_INLINE V half(const float* right, int v) const {
    return V::load(right + v / parts * p.widened_block + kHalf * kBlock + v % parts * V::lanes);
  }
  template <int kHalf>
  FUSEDRNN_INLINE V half(const Bfloat16* right, int v) const {
    return half_of<kHalf>(words(right, v));
  }
  FUSEDRNN_INLINE const float* initial(int m, int v) const {
    return p.initial[first_block + v / parts] + m * p.initial_row + column + v % parts * V::lanes;
  }
  FUSEDRNN_INLINE float* out(int m, int v) const {
    return p.out[first_block + v / parts] + m * p.out_row + column + v % parts * V::lanes;
  }
  FUSEDRNN_INLINE WideBits words(const Bfloat16* right, int v) const {
    return load_words(right + v / parts * p.right_block + v % parts * 2 * V::lanes);
  }
  // Visits the pairs of `length` steps, a last single one with single(p, right); leaves both operands behind them.
  template <class Left, class Pair, class Single>
  FUSEDRNN_INLINE void walk(Left& left, const Right*& right, Index length, const Pair& pair,
                            const Single& single) const {
    do {
      const Index pairs = smaller(Left::run, length / 2);
#pragma GCC unroll 2
      for (Index k = 0; k < pairs; ++k, right += kPairBlock) pair(k, right);
      if (pairs < Left::run && length % 2 != 0) single(pairs, right);
      left.next_run();
      right += Left::right_jump * kPairBlock;
      length -= 2 * Left::run;
    } while (length > 0);
  }

  // The chain of a group's halves kHalf. do-while: with leading tests the compiler copies all sums.
  template <int kHalf, class Left>
  FUSEDRNN_INLINE void chain(Left& left, const Right*& right, Index pairs, Sums& sum) const {
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[m][v] = V(0.0f);
    do {
      Index k = 0;
      const Index run = smaller(Left::run, pairs);
      do {
        V b[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
          b[v] = half<kHalf>(right, v);
          keep_in_register(b[v]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m) {
          const V a = left_half<kHalf>(left, m, k);
#pragma GCC unroll 8
          for (int v = 0; v < vectors; ++v) sum[m][v] = fma(a, b[v], sum[m][v]);
        }
        if constexpr (Rows >= kPrefetchRows) {
#pragma GCC unroll 8
          for (int v = 0; v < vectors; ++v)
            __builtin_prefetch(right + v / parts * p.widened_block + kHalf * kBlock + v % parts * V::lanes +
                               kPrefetchPairs * kPairBlock);
        }
        right += kPairBlock;
      } while (++k < run);
      left.next_run();
      right += Left::right_jump * kPairBlock;
      pairs -= Left::run;
    } while (pairs > 0);
  }

  // Of many rows: one half's chains after the other's, which wait in `scratch`. An odd step is followed by zeros.
  template <class Left>
  FUSEDRNN_NOINLINE void widened(Left left, float* scratch) const {
    const Right* from = right();
    // Copies, which stores cannot change.
    const Index out_row = p.out_row;
    Index from_row = p.initial_row, pairs = (p.length + 1) / 2;
    const float* before[Blocks];
    float* sums[Blocks];
#pragma GCC unroll 4
    for (int i = 0; i < Blocks; ++i) {
      before[i] = initial(0, i * parts);
      sums[i] = out(0, i * parts);
    }
    do {
      const Index group = smaller(kGroupPairs, pairs);
      Sums sum;
      Left even = left;
      const Right* even_from = from;
      chain<0>(even, even_from, group, sum);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[m][v].store(scratch + (m * vectors + v) * V::lanes);
      chain<1>(left, from, group, sum);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
          const Index at = v % parts * V::lanes;
          const V first = V::load(scratch + (m * vectors + v) * V::lanes);
          (V::load(before[v / parts] + m * from_row + at) + (first + sum[m][v]))
              .store(sums[v / parts] + m * out_row + at);
        }
#pragma GCC unroll 4
      for (int i = 0; i < Blocks; ++i) before[i] = sums[i];
      from_row = out_row;
      pairs -= kGroupPairs;
    } while (pairs > 0);
  }

  // Of few rows: the chains of both halves at once, as one would wait for itself; words are widened as they are read.
  template <class Left>
  FUSEDRNN_NOINLINE void widening(Left left) const {
    const Right* from = right();
    Sums total;
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) total[m][v] = V::load(initial(m, v));
    for (Index done = 0; done < p.length; done += kPairGroup) {
      Sums even, odd;
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) even[m][v] = odd[m][v] = V(0.0f);
      add_both(left, from, smaller(kPairGroup, p.length - done), even, odd);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) total[m][v] += even[m][v] + odd[m][v];
    }
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) total[m][v].store(out(m, v));
  }
  template <class Left>
  FUSEDRNN_INLINE void add_both(Left& left, const Right*& right, Index length, Sums& even, Sums& odd) const {
    walk(
        left, right, length,
        [&](Index k, const Right* from) {
#pragma GCC unroll 8
          for (int v = 0; v < vectors; ++v) {
            const V first = half<0>(from, v), second = half<1>(from, v);
#pragma GCC unroll 2
            for (int m = 0; m < Rows; ++m) {
              even[m][v] = fma(left_half<0>(left, m, k), first, even[m][v]);
              odd[m][v] = fma(left_half<1>(left, m, k), second, odd[m][v]);
            }
          }
        },
        [&](Index k, const Right* from) {
#pragma GCC unroll 8
          for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 2
            for (int m = 0; m < Rows; ++m) even[m][v] = fma(V(widen(*left.at(m, k))), half<0>(from, v), even[m][v]);
        });
  }

#ifdef __AVX512BF16__
  template <class Left>
  FUSEDRNN_NOINLINE void dotting(Left left) const {
    V sum[Rows][vectors];
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[m][v] = V::load(initial(m, v));
    const auto add = [&](const auto& a, const Bfloat16* from) {
      WideBits b[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        b[v] = words(from, v);
        native::keep_in_register(b[v]);
      }
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const WideBits a_m = a(m);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[m][v] = dot(a_m, b[v], sum[m][v]);
      }
    };
    const Bfloat16* from = right();
    walk(
        left, from, p.length,
        [&](Index k, const Bfloat16* at) { add([&](int m) { return word_everywhere(left.at(m, k)); }, at); },
        [&](Index k, const Bfloat16* at) { add([&](int m) { return single_everywhere(left.at(m, k)); }, at); });
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[m][v].store(out(m, v));
  }
#endif
};

// Whether left operands stay as they are stored.
constexpr bool kNarrowLeft = kDotsWords || kTiles;

struct PairTile {
  using T = Bfloat16;
  using Left = std::conditional_t<kNarrowLeft, Bfloat16, float>;
  using Right = Bfloat16;
  using Sum = float;
  using Product = PairProduct;
  using OuterLeft = PairsOfColumns<Left>;
  using Session = TileSession;

  static constexpr int MR = kTiles ? kTileRows : 6;
  static constexpr Index NR = 4 * kBlock;
  static constexpr Index KC = kPairSteps;
  static constexpr bool pairs = true;
  // Most rows of a run whose right operand was not made ready.
  static constexpr int kRowsUnready = kNarrowLeft ? MR : 2;

  // A right operand of up to NR columns, widened once for all rows that are multiplied with it.
  struct Ready {
    const float* widened = nullptr;
    Index block = 0;
  };
  // `length`: KC at most; `scratch`: kReadyElements of the thread's own.
  static Ready make_ready(const Right* right, Index right_block, Index length, Index blocks, Index rows,
                          float* scratch) {
    if (kNarrowLeft || rows <= kRowsUnready) return {};
    const Index block = (length + 1) / 2 * kPairBlock;
    for (Index i = 0; i < blocks; ++i) widen_block(right + i * right_block, block, scratch + i * block);
    return {scratch, block};
  }
  // Lets a product read it from a block and an even step on.
  static void use(const Ready& ready, Index block, Index step, Product& product) {
    if (!ready.widened) return;
    product.widened = ready.widened + block * ready.block + step * kBlock;
    product.widened_block = ready.block;
  }

  template <class Operand>
  static void run(int rows, const Operand& left, const Product& p, Index blocks) {
#ifdef FUSEDRNN_TILES
    TileProduct<Product>(rows, p, blocks).run(left);
#else
    if constexpr (kDotsWords || std::is_same_v<Operand, RowPointers<Right>>) {
      run_rows<Right, kRowsUnready>(rows, left, p, blocks);
    } else if constexpr (std::is_same_v<Operand, OuterLeft>) {
      run_rows<float, MR>(rows, left, p, blocks);
    } else {
      if (p.widened) return run_rows<float, MR>(rows, left, p, blocks);
      run_rows<Right, kRowsUnready>(rows, left, p, blocks);
    }
#endif
  }

  // Forward: 16 rows of a weight matrix (columns contiguous, `inner` of them) become one block [inner / 2][16][2].
  static void pack_forward(const T* weight, Index inner, Index rows, Right* packed) {
    constexpr Index lanes = Vec<float>::lanes;
    for (Index first = 0; first < kBlock; first += lanes)
      for (Index k = 0; k < packed_inner<T>(inner); k += 2 * lanes)
        pack_words(weight + first * inner + k, inner, smaller(lanes, rows - first), inner - k,
                   packed + k * kBlock + 2 * first);
  }

  // Backward: `count` blocks of 16 columns of the weight matrix, from `first_block` on; the inner dimension runs over
  // the window's slots, unit blocks, and the 16 units.
  static void pack_backward(const T* weight, Index columns, Index first_block, Index count, Index hidden,
                            const Window& window, Right* packed, Index packed_stride) {
    const Index first = first_block * kBlock;
    const Right* const begin = packed;
    for (int slot = 0; slot < window.count; ++slot)
      for (Index unit = 0; unit < padded(hidden); unit += 2, packed += kPairBlock) {
        const T* row = weight + (window.gate[slot] * hidden + unit) * columns + first;
        for (Index i = 0; i < count; ++i)
          store_pair(unit < hidden ? row + i * kBlock : nullptr,
                     unit + 1 < hidden ? row + columns + i * kBlock : nullptr,
                     smaller(kBlock, columns - first - i * kBlock), packed + i * packed_stride);
      }
    for (; packed < begin + packed_stride; packed += kPairBlock)
      for (Index i = 0; i < count; ++i) clear(packed + i * packed_stride, kPairBlock);
  }

  // Two rows of `count` <= 16 elements, null for zeros, become pairs, zeros after them.
  static void store_pair(const T* first, const T* second, Index count, Right* to) {
    constexpr Index lanes = Vec<float>::lanes;
    for (Index u = 0; u < kBlock; u += lanes) {
      const int there = static_cast<int>(larger(0, smaller(lanes, count - u)));
      store_words(words_of(first ? first + u : nullptr, second ? second + u : nullptr, there), to + 2 * u);
    }
  }

 private:
  template <class Element, int kRows, class Operand>
  static void run_rows(int rows, const Operand& left, const Product& p, Index blocks) {
    if constexpr (kRows > 1)
      if (rows < kRows) return run_rows<Element, kRows - 1>(rows, left, p, blocks);
    cover<Element, kRows>(pairs_of<kRows>(left), p, blocks);
  }

  // Covers `blocks` blocks of columns with tiles.
  template <class Element, int Rows, class Pairs>
  static void cover(const Pairs& left, const Product& p, Index blocks) {
    using Shape = TileShape<float>;
    constexpr int width = Shape::parts * Shape::lanes;
    Index i = 0;
    for (; i + Shape::blocks <= blocks; i += Shape::blocks)
      for (int pass = 0; pass < Shape::passes; ++pass) multiply<Element, Rows, Shape::blocks>(left, p, i, pass * width);
    if constexpr (Shape::blocks > 1) {
      if (blocks - i == 1) multiply<Element, Rows, 1>(left, p, i, 0);
      if constexpr (Shape::blocks == 4) {
        if (blocks - i == 2) multiply<Element, Rows, 2>(left, p, i, 0);
        if (blocks - i == 3) multiply<Element, Rows, 3>(left, p, i, 0);
      }
    }
  }
  template <class Element, int Rows, int Blocks, class Pairs>
  static void multiply(const Pairs& left, const Product& p, Index first_block, Index column) {
    const PairTileOf<Element, Rows, Blocks> tile = {p, first_block, column};
#ifdef __AVX512BF16__
    tile.dotting(left);
#else
    if constexpr (std::is_same_v<Element, float>) {
      alignas(64) float scratch[Rows * Blocks * kBlock];
      tile.widened(left, scratch);
    } else {
      tile.widening(left);
    }
#endif
  }

  static void widen_block(const Right* words, Index elements, float* to) {
    constexpr Index lanes = Vec<float>::lanes;
    for (const Right* end = words + elements; words < end; words += kPairBlock, to += kPairBlock)
#pragma GCC unroll 4
      for (Index u = 0; u < kBlock; u += lanes) {
        const WideBits pair = load_words(words + 2 * u);
        half_of<0>(pair).store(to + u);
        half_of<1>(pair).store(to + kBlock + u);
      }
  }

  // Lines of words, one of each row, become columns: word k of row u is word u of line k.
  static void pack_words(const T* weight, Index inner, Index rows, Index count, Right* packed) {
    using V = Vec<float>;
    V lines[V::lanes];
    for (int u = 0; u < V::lanes; ++u) {
      const T* from = weight + u * inner;
      WideBits words = {};
      if (u < rows && count >= 2 * V::lanes)
        words = load_words(from);
      else if (u < rows && count > 0)
        words = load_words_partial(from, count);
      lines[u] = V((V::Native)words);
    }
    transpose<float>(lines);
    for (int k = 0; k < V::lanes; ++k) store_words((WideBits)lines[k].native, packed + k * kPairBlock);
  }
};

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
