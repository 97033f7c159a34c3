#include "ops/ctc_loss/run.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/operation.h"
#include "cpu/runtime/pool.h"

namespace fusedrnn {
namespace {

// Cycles of a frame: of each class, and of each label forward and backward, about.
constexpr double kCyclesOfAClass = 3, kCyclesOfALabel = 8;
// Below this a team costs more than it saves.
constexpr double kTeamCycles = 1e5;

double cycles_of(const CtcRow& row, Index classes) {
  return static_cast<double>(row.steps) *
         (kCyclesOfAClass * static_cast<double>(classes) + kCyclesOfALabel * static_cast<double>(row.length + kBlock));
}

// Parts of consecutive rows, of about the same cost. Whoever computes a row, its bits are the same.
std::vector<Index> divide(const std::vector<double>& cost, int parts) {
  double total = 0, done = 0;
  for (const double one : cost) total += one;
  std::vector<Index> first(static_cast<std::size_t>(parts) + 1, static_cast<Index>(cost.size()));
  first[0] = 0;
  int part = 1;
  for (std::size_t b = 0; b < cost.size(); done += cost[b++])
    while (part < parts && done + cost[b] / 2 >= total * part / parts)
      first[static_cast<std::size_t>(part++)] = static_cast<Index>(b);
  return first;
}

template <class Real>
bool run(CtcLossArguments<Real> a, int threads, const Interrupt& interrupt,
         void (*kernel)(const CtcLossArguments<Real>&, Worker&)) {
  std::vector<double> cost;
  double total = 0;
  Index longest = 0;
  for (Index b = 0; b < a.rows; ++b) {
    cost.push_back(cycles_of(a.row[b], a.classes));
    total += cost.back();
    longest = std::max(longest, a.row[b].length);
  }
  threads = total < kTeamCycles ? 1 : team_size(static_cast<int>(std::min<Index>(threads, a.rows)), total);
  threads = std::max(threads, 1);
  a.workspace_size = ctc_workspace(longest);
  const Buffer workspace(static_cast<std::size_t>(threads * a.workspace_size) * sizeof(Real));
  a.workspace = workspace.as<Real>();
  const std::vector<Index> first = divide(cost, threads);
  a.parts = threads;
  a.first_row = first.data();
  return run_operation(a, threads, interrupt, kernel);
}

}  // namespace

// Frames: of emissions, of transitions, two of forward variables or one of backward ones; and a vector's slack, which
// is read past the last.
Index ctc_workspace(Index longest) { return 4 * ctc_frame(longest) + kBlock; }

template <class Real>
bool run_ctc_forward(CtcLossArguments<Real> a, int threads, const Interrupt& interrupt) {
  return run(a, threads, interrupt, operations<Real>().ctc_loss.forward);
}
template <class Real>
bool run_ctc_backward(CtcLossArguments<Real> a, int threads, const Interrupt& interrupt) {
  return run(a, threads, interrupt, operations<Real>().ctc_loss.backward);
}

template bool run_ctc_forward(CtcLossArguments<float>, int, const Interrupt&);
template bool run_ctc_forward(CtcLossArguments<double>, int, const Interrupt&);
template bool run_ctc_backward(CtcLossArguments<float>, int, const Interrupt&);
template bool run_ctc_backward(CtcLossArguments<double>, int, const Interrupt&);

}  // namespace fusedrnn
