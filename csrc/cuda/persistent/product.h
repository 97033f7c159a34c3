// A block's product: for each of its weight rows r and each row n of its slice of the batch, the sum over k of
// weight(r, k) * right(k, n). The block's warps split k. The weights stay in registers for all stages; the right
// operand comes from the exchange buffer; the partial sums of the warps meet in shared memory.
//
// Everything here and in the block programs is written over a policy, which is the GPU or, in the tests, a host that
// plays it:
//   each(f)        f(thread, its registers) for all threads of the block; parted from what other threads do by
//   barrier()
//   mma<T>(f)    f(registers) names a thread's fragments; all lanes of a warp give theirs to one mma
//   store_partial, load_partials     shared memory
//   store_exchange, load_exchange    the exchange buffer: a word, four words; others see a word some time later, and
//                                    those of different places in any order
//   await(ready, again)              for all threads: again(thread, its registers) until ready(its registers)
//   fence()                          what a thread stored before it, others see before what it stores afterwards
//   prefetch(address)                a thread will load from there in the next stage
#pragma once
#include "cuda/persistent/operand.h"
#include "cuda/persistent/plan.h"
#include "cuda/runtime/device_code.h"

namespace fusedrnn {
namespace persistent {
namespace {

// A thread's part of the operands of one mma: D += A B.
struct Fragments {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// What stands in the exchange buffer where a word has yet to come; no word that is sent looks so.
constexpr std::uint32_t kMissing = 0xffffffff;

// Fragments of the right operand that a thread loads ahead at once: an even part of all, eight at most.
constexpr int chunk_of(int steps) {
  for (int chunk = 8; chunk > 2; chunk -= 2)
    if (steps % chunk == 0) return chunk;
  return 2;
}

// kRows of weights, kLength values along k.
template <class T, int kRows, int kLength>
struct BlockProduct {
  using O = Operand<T>;
  // Eight rows fill half of an mma's sixteen. Then its other half takes the weights of the next fragment of k, and the
  // mma is issued for both fragments of the right operand, each time with one half of the result to be used.
  static constexpr int kFold = kRows < 16 ? 2 : 1;
  static constexpr int kTiles = (padded_rows(kRows) + 15) / 16;  // of 16 weight rows
  static constexpr int kSteps = kLength / kWarps / O::kDepth;    // fragments of k that a warp multiplies
  // Sums that are formed side by side, as an mma waits for the one before that adds to the same.
  static constexpr int kChains = kTiles > 2 ? kFold : kTiles == 2 ? 2 : 4;
  static constexpr int kFragments = kSteps / kFold * kTiles;  // of weights that a warp holds
  static constexpr int kPacked = kFragments * kThreads;       // Words of a block's weights
  static constexpr int kChunk = chunk_of(kSteps), kChunks = kSteps / kChunk;
  static constexpr int kPairs = kLength / O::kDepth / 2;  // of fragments, in eight columns of the exchange buffer
  static constexpr int kStride = partial_stride(kRows);
  static_assert(kSteps % kChunk == 0 && kChunk % 2 == 0, "fragments come in pairs");

  struct Registers {
    std::uint32_t weight[kFragments][4];
    std::uint32_t right[kChunk][2], coming[kChunk][2];
    float sum[kChains][kTiles][4];
  };

  // First, if `pack`, a thread lays its weights out in its own part of `packed`, (kFragments, kThreads); weight(r, k)
  // is 0 for whatever pads kRows to tiles and the hidden size to the capacity. Straight from weight(r, k) into
  // registers, all of whose places must be known when compiling, the addresses of hundreds of loads would fill the
  // registers.
  template <class Policy, class F>
  FUSEDRNN_DEVICE static void load_weights(Policy& policy, Words* packed, bool pack, F weight) {
    policy.each([&](int thread, auto& mine) {
      Words* const own = packed + thread;
      if (pack) {
        FUSEDRNN_KEEP_ROLLED
        for (int fragment = 0; fragment < kFragments; ++fragment)
          own[fragment * kThreads] = fragment_of(thread, fragment, weight);
      }
      FUSEDRNN_UNROLL
      for (int fragment = 0; fragment < kFragments; ++fragment) {
        const Words words = own[fragment * kThreads];
        FUSEDRNN_UNROLL
        for (int i = 0; i < 4; ++i) mine.product.weight[fragment][i] = words.word[i];
      }
    });
  }

  // Waits for the right operand, each thread for its own part. The partial sums of `columns` rows of the batch, a
  // power of two times eight, are in shared memory after the next barrier. Each block begins with other columns than
  // its neighbours: all blocks read the same memory at about the same time.
  template <class Policy>
  FUSEDRNN_DEVICE static void run(Policy& policy, const std::uint32_t* right, int columns) {
    const int first = policy.block() * 8 & (columns - 1);
    request(policy, right, first, 0);
    FUSEDRNN_KEEP_ROLLED
    for (int done = 0; done < columns; done += 8) {
      const int column = (first + done) & (columns - 1);
      policy.each([&](int, auto& mine) {
        FUSEDRNN_UNROLL
        for (auto& chain : mine.product.sum) {
          FUSEDRNN_UNROLL
          for (auto& sum : chain) sum[0] = sum[1] = sum[2] = sum[3] = 0;
        }
      });
      FUSEDRNN_UNROLL
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        receive(policy, right, column, chunk);
        policy.each([&](int, auto& mine) {
          FUSEDRNN_UNROLL
          for (int i = 0; i < kChunk; ++i) {
            mine.product.right[i][0] = mine.product.coming[i][0];
            mine.product.right[i][1] = mine.product.coming[i][1];
          }
        });
        if (chunk + 1 < kChunks)
          request(policy, right, column, chunk + 1);
        else if (done + 8 < columns)
          request(policy, right, (column + 8) & (columns - 1), 0);
        multiply(policy, chunk);
      }
      policy.each([&](int thread, auto& mine) { store(policy, thread, mine.product, column, columns); });
    }
  }

  // After that barrier: the sums for weight rows r, r + 1, ... and row n of the slice, the warps' parts always in the
  // same order.
  template <class Policy, int kCount>
  FUSEDRNN_DEVICE static void total(Policy& policy, int thread, int r, int n, int columns, float (&sum)[kCount]) {
    FUSEDRNN_UNROLL
    for (float& one : sum) one = 0;
    FUSEDRNN_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      float part[kCount];
      policy.load_partials(thread, warp * partial_words(kStride, columns) + partial_at(kStride, n, r), part);
      FUSEDRNN_UNROLL
      for (int i = 0; i < kCount; ++i) sum[i] += part[i];
    }
  }

 private:
  template <class F>
  FUSEDRNN_DEVICE static Words fragment_of(int thread, int fragment, F weight) {
    const int lane = thread % 32, g = lane / 4, j = lane % 4;
    const int step = thread / 32 * kSteps + fragment / kTiles * kFold, tile = fragment % kTiles;
    Words words;
    FUSEDRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int upper = i % 2, row = kFold == 2 ? g : tile * 16 + g + 8 * upper;
      const int k = (step + (kFold == 2 ? upper : 0)) * O::kDepth + O::kDepth / 2 * (i / 2) + j * O::kPerWord;
      words.word[i] = O::word([&](int next) { return weight(row, k + next); });
    }
    return words;
  }

  // Asks for a chunk of the right operand, whether it is there or not.
  template <class Policy>
  FUSEDRNN_DEVICE static void request(Policy& policy, const std::uint32_t* right, int column, int chunk) {
    policy.each([&](int thread, auto& mine) {
      FUSEDRNN_UNROLL
      for (int pair = 0; pair < kChunk / 2; ++pair) load(policy, right, column, chunk, thread, mine.product, pair);
    });
  }
  // Asks again until all of it is there.
  template <class Policy>
  FUSEDRNN_DEVICE static void receive(Policy& policy, const std::uint32_t* right, int column, int chunk) {
    policy.await(
        [](const auto& mine) {
          bool missing = false;
          FUSEDRNN_UNROLL
          for (int pair = 0; pair < kChunk / 2; ++pair) missing |= lacks(mine.product, pair);
          return !missing;
        },
        [&](int thread, auto& mine) {
          FUSEDRNN_UNROLL
          for (int pair = 0; pair < kChunk / 2; ++pair)
            if (lacks(mine.product, pair)) load(policy, right, column, chunk, thread, mine.product, pair);
        });
  }
  FUSEDRNN_DEVICE static bool lacks(const Registers& mine, int pair) {
    const auto& a = mine.coming[2 * pair];
    const auto& b = mine.coming[2 * pair + 1];
    return a[0] == kMissing || a[1] == kMissing || b[0] == kMissing || b[1] == kMissing;
  }
  template <class Policy>
  FUSEDRNN_DEVICE static void load(Policy& policy, const std::uint32_t* right, int column, int chunk, int thread,
                                   Registers& mine, int pair) {
    const int first = column / 8 * kPairs + (thread / 32 * kSteps + chunk * kChunk) / 2;
    const Words words = policy.load_exchange(right, (first + pair) * 32 + thread % 32);
    FUSEDRNN_UNROLL
    for (int i = 0; i < 4; ++i) mine.coming[2 * pair + i / 2][i % 2] = words.word[i];
  }

  template <class Policy>
  FUSEDRNN_DEVICE static void multiply(Policy& policy, int chunk) {
    FUSEDRNN_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      FUSEDRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const int step = chunk * kChunk + i;
        policy.template mma<T>([=](auto& mine) {
          auto& product = mine.product;
          return Fragments{product.sum[step % kChains][tile], product.weight[step / kFold * kTiles + tile],
                           product.right[i]};
        });
      }
    }
  }

  template <class Policy>
  FUSEDRNN_DEVICE static void store(Policy& policy, int thread, const Registers& mine, int column, int columns) {
    const int lane = thread % 32, g = lane / 4, j = lane % 4;
    FUSEDRNN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int at = thread / 32 * partial_words(kStride, columns) + partial_at(kStride, column + 2 * j + i, g);
      FUSEDRNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        policy.store_partial(thread, at + tile * 16, joined(mine, tile, i, 0));
        if (kFold == 1) policy.store_partial(thread, at + tile * 16 + 8, joined(mine, tile, i, 2));
      }
    }
  }
  // The chains of a sum together. Where halves of an mma's rows are parts of the same sums, odd chains give the lower.
  FUSEDRNN_DEVICE static float joined(const Registers& mine, int tile, int i, int half) {
    float sum = 0;
    FUSEDRNN_UNROLL
    for (int chain = 0; chain < kChains; ++chain) sum += mine.sum[chain][tile][i + (kFold == 2 ? chain % 2 * 2 : half)];
    return sum;
  }
};

}  // namespace
}  // namespace persistent
}  // namespace fusedrnn
