#include "cpu/runtime/split.h"

#include <algorithm>

#include "cpu/platform/system.h"

namespace fusedrnn {
namespace {

// Cycles, measured on AVX-512 cores; only their ratios matter.
constexpr double kBytesFromSecondLevel = 32;  // a cycle
constexpr double kBytesFromBeyond = 20;
// Packed weights that another thread wrote, once a call: they leave its cache to be read, and to be written again in
// the next call.
constexpr double kBytesFromAnother = 4;
constexpr double kAtOnce = 2;         // fused multiply-adds of registers a cycle
constexpr double kLoadsForATile = 4;  // right-hand vectors a tile loads however few its rows
constexpr double kBarrier = 1200;     // with the wait for the slower thread, and for h from the other core's cache
constexpr double kTeam = 30000;       // starting a team, spread over the steps

// Bytes of second-level cache that a core has to itself.
double cache_bytes() {
  static const double bytes = [] {
    const Index told = second_level_cache();
    return static_cast<double>(told > 0 ? told : 1 << 20);
  }();
  return bytes;
}

// A step's cycles for the thread with the largest share.
double cycles(const StepCost& cost, const Split& split) {
  const double rows = static_cast<double>((cost.rows + split.row_parts - 1) / split.row_parts);
  const double blocks = static_cast<double>((cost.blocks + split.unit_parts - 1) / split.unit_parts);
  const double tiles = std::max(1.0, rows / static_cast<double>(cost.tile_rows)),
               vectors = blocks * static_cast<double>(cost.columns * cost.inner);
  const double multiply =
      vectors * 16 / static_cast<double>(cost.lanes) * std::max(rows / kAtOnce, tiles * kLoadsForATile / 4);
  const double bytes = vectors * 16 * static_cast<double>(cost.real_bytes);
  const bool near = bytes <= 0.75 * cache_bytes();
  const double read = bytes / (near ? kBytesFromSecondLevel : kBytesFromBeyond);
  const double meet =
      (split.unit_parts > 1 ? kBarrier : 0) + (split.threads() > 1 ? kTeam / static_cast<double>(cost.steps) : 0);
  const double fetched = 2 * bytes * (1 - 1.0 / split.row_parts);  // weight_ih is about as large
  return std::max(multiply, read) + meet + fetched / kBytesFromAnother / static_cast<double>(cost.steps);
}

}  // namespace

double step_cycles(const StepCost& cost) { return cycles(cost, Split{}); }

Split split_step(const StepCost& cost, int threads) {
  Split best;
  double least = cycles(cost, best);
  for (int units = 1; units <= threads; ++units) {
    const Split candidate = {threads / units, units};
    if (candidate.row_parts > cost.rows || units > cost.blocks) continue;
    // Few rows of a ragged batch run in the later steps: rows are divided only where units cannot be divided further.
    if (cost.ragged && candidate.row_parts > 1 && units < std::min<Index>(threads, cost.blocks)) continue;
    const double estimate = cycles(cost, candidate);
    if (estimate < least) {
      least = estimate;
      best = candidate;
    }
  }
  return best;
}

}  // namespace fusedrnn
