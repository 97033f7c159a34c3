// Which sizes the block program takes on, and how it lays them out: blocks, shared memory, workspace.
//
// A group of blocks serves one direction and one slice of the batch's rows; a block owns some units of its group.
// Groups have nothing to do with each other.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/persistent/arguments.h"

namespace fusedrnn {
namespace persistent {

// bfloat16 and float16: arrays of 16 bits. tf32: arrays of float32, which products round to 10 bits of mantissa.
enum class Precision { bfloat16, float16, tf32 };
enum class Pass { forward, backward };
// One kernel a stage, or all stages in one cooperative kernel.
enum class Form { kernel_a_stage, one_kernel };

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxSliceRows = 32;
constexpr int kMaxHidden = 1024;
constexpr int kCarriedValues = 3;  // of a cell from kernel to kernel: forward h, c; backward dh, dc and whether linked
// Of a group, used in turn. With a fence every so many stages that is as many as the argument in docs/persistent.md
// needs.
constexpr int kExchangeBuffers = 16, kFencePeriod = 4;
constexpr int kCapacities[] = {256, 512, 768, 1024};  // hidden sizes that kernels are compiled for

// Rows of a block's weight matrix: a gate's units after another, or going backward one row for each unit.
constexpr int weight_rows(Pass pass, int gates, int units) { return pass == Pass::forward ? gates * units : units; }
// Length of the sums that a stage forms: h, or going backward the gradients of all gates.
constexpr int product_depth(Pass pass, int gates, int capacity) {
  return pass == Pass::forward ? capacity : gates * capacity;
}
// Those rows with what fills the tiles of an mma; 8 rows make half a tile, whose other half takes more of the sum.
constexpr int padded_rows(int rows) { return rows > 8 ? (rows + 15) / 16 * 16 : rows; }
// Where a warp's partial sum for weight row r and row n of the slice lies in shared memory, and the words of a warp.
// The rows of a pair begin half of all banks apart, and pairs a quarter: a warp's writes, of 8 weight rows in every
// other row n, and its reads, of 16 weight rows in each, meet in no bank.
constexpr int partial_stride(int rows) { return (padded_rows(rows) + 15) / 32 * 32 + 16; }
FUSEDRNN_INLINE constexpr int partial_at(int stride, int n, int r) {
  return n / 2 * (2 * stride + 8) + n % 2 * stride + r;
}
FUSEDRNN_INLINE constexpr int partial_words(int stride, int columns) { return partial_at(stride, columns, 0); }

struct Problem {
  const char* cell;  // the name its traits carry
  Precision precision;
  Pass pass;
  Form form;
  Index hidden_size, rows;
  int directions;  // that one launch runs
};

struct Plan {
  Problem problem;
  int capacity;                     // hidden size of the kernel, at least the problem's
  int units;                        // of a block
  int blocks;                       // of a group
  int slice_rows, slices;           // rows of a slice but the last; 8, 16 or 32
  Index exchange_stride;            // words of one of a group's buffers
  std::size_t shared_bytes;         // of a block
  std::size_t packed_at, carry_at;  // in the workspace, which begins with the exchange buffers
  std::size_t workspace_bytes;      // that the caller provides, aligned to 256
  int grid() const { return problem.directions * slices * blocks; }
  Index exchange_words() const { return Index(problem.directions) * slices * kExchangeBuffers * exchange_stride; }
};

// Null, or why the block program does not do this; `multiprocessors` are the device's. Directions that do not fit in
// one launch may fit one at a time. A plan does not depend on the steps.
const char* make_plan(const Problem& problem, int multiprocessors, Plan& plan);

// What blocks need to know of a plan and of the workspace that its call got.
Grid grid_of(const Plan& plan, void* workspace);

}  // namespace persistent
}  // namespace fusedrnn
