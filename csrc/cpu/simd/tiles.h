// AMX's tiles of bfloat16, and a stand-in with the same bits for processors without them, by which tests run all that
// lies around the tiles. The instructions are inline assembly: so a tile's number can be a template argument, and the
// compiler needs no flag and may not assume that the processor has them.
#pragma once
#include "cpu/simd/word.h"

namespace fusedrnn {
inline namespace FUSEDRNN_ISA_NAME {
namespace {

// A tile is 16 rows of 64 bytes. kTiles: whether products go by tiles.
constexpr int kTileRows = 16, kTileWords = 16;
#if defined(FUSEDRNN_AMX) || defined(FUSEDRNN_PLAIN_TILES)
#define FUSEDRNN_TILES
constexpr bool kTiles = true;
#else
constexpr bool kTiles = false;
#endif

#if defined(FUSEDRNN_AMX)
// This thread's tiles for as long as it lives, all of them whole.
class TileSession {
 public:
  TileSession() {
    alignas(64) Configuration whole;
    for (int tile = 0; tile < 8; ++tile) {
      whole.row_bytes[tile] = 64;
      whole.rows[tile] = kTileRows;
    }
    asm volatile("ldtilecfg (%0)" : : "r"(&whole) : "memory");
  }
  ~TileSession() { asm volatile("tilerelease" : : : "memory"); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

 private:
  struct Configuration {  // as the instruction reads it
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };
};

// Rows lie `stride` bytes apart.
template <int kTile>
FUSEDRNN_INLINE void load_tile(const void* from, long stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
FUSEDRNN_INLINE void store_tile(void* to, long stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
// sum += a . b, row m of a having pairs of steps, row p of b a pair of steps of 16 columns.
template <int kSum, int kA, int kB>
FUSEDRNN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" : : "i"(kB), "i"(kA), "i"(kSum));
}

#elif defined(FUSEDRNN_PLAIN_TILES)
struct TileSession {
  TileSession() {}
};

inline unsigned char (&plain_tile(int tile)) [kTileRows][64] {
  thread_local unsigned char tiles[8][kTileRows][64];
  return tiles[tile];
} template <int kTile>
                                             void load_tile(const void* from, long stride) {
  for (int r = 0; r < kTileRows; ++r)
    __builtin_memcpy(plain_tile(kTile)[r], static_cast<const char*>(from) + r * stride, 64);
}
template <int kTile>
void store_tile(void* to, long stride) {
  for (int r = 0; r < kTileRows; ++r) __builtin_memcpy(static_cast<char*>(to) + r * stride, plain_tile(kTile)[r], 64);
}

// As the instruction does it: denormals are zeros, in what it reads and in each result.
inline float flushed(float a) { return __builtin_fabsf(a) < 0x1p-126f ? __builtin_copysignf(0, a) : a; }
inline float half_of_word(const unsigned char* word, int half) {
  Bfloat16 value;
  __builtin_memcpy(&value, word + 2 * half, sizeof value);
  return flushed(widen(value));
}
template <int kSum, int kA, int kB>
void multiply_tiles() {
  for (int m = 0; m < kTileRows; ++m)
    for (int n = 0; n < kTileWords; ++n) {
      float chain[2] = {0, 0}, sum;
      for (int p = 0; p < kTileWords; ++p)
        for (int half = 0; half < 2; ++half)
          chain[half] = flushed(__builtin_fmaf(half_of_word(plain_tile(kA)[m] + 4 * p, half),
                                               half_of_word(plain_tile(kB)[p] + 4 * n, half), chain[half]));
      __builtin_memcpy(&sum, plain_tile(kSum)[m] + 4 * n, sizeof sum);
      sum = flushed(flushed(sum) + flushed(chain[0] + chain[1]));
      __builtin_memcpy(plain_tile(kSum)[m] + 4 * n, &sum, sizeof sum);
    }
}

#else
struct TileSession {
  TileSession() {}  // so that one which nothing else uses is no warning
};
#endif

}  // namespace
}  // namespace FUSEDRNN_ISA_NAME
}  // namespace fusedrnn
