#include "cpu/layers/single_step.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/layers/step_cost.h"
#include "cpu/layers/step_team.h"

namespace fusedrnn {
namespace {

// Read at a stride, weights are not quite as near as packed ones; measured, packing them for the backward pass pays
// from about 48 rows on.
constexpr Index kMostGradientRows = 32;

// A step of more rows is for the other driver, which can be interrupted within it.
constexpr Index kMostPackedRows = 32;

// The parts of one buffer.
template <class Real>
struct Workspace {
  Buffer buffer;
  Real *zeros, *operand, *kept, *outputs[2];

  // `output`: elements of a layer's output that only the next one reads.
  Workspace(const CellTraits& traits, Index hidden, Index rows, Index output) {
    const Index wide = traits.phases == 2 ? rows * padded(hidden) : 0;
    buffer = Buffer(static_cast<std::size_t>(hidden + (1 + traits.slots) * wide + 2 * output) * sizeof(Real));
    zeros = buffer.as<Real>();
    std::fill_n(zeros, hidden, Real(0));
    operand = zeros + hidden;
    kept = operand + wide;
    outputs[0] = kept + traits.slots * wide;
    outputs[1] = outputs[0] + output;
  }
};

template <class Real>
StateRows<const Real> or_zeros(const StateRows<const Real>& rows, const Real* zeros) {
  return rows.data ? rows : StateRows<const Real>{zeros, 0};
}

}  // namespace

bool single_step_pays(Index rows) { return rows > 0 && rows <= kernels<float>().direct_rows; }
bool packed_step_pays(Index rows) { return rows > 0 && rows <= kMostPackedRows; }
bool single_step_gradient_pays(Index rows) { return rows <= kMostGradientRows; }

template <class Real>
void run_single_step(const RecurrentConfig& config, const ForwardCall<Real>& call) {
  const CellKernels<Real>& kernels = fusedrnn::kernels<Real>().cells[config.cell];
  const Workspace<Real> workspace(kernels.traits, config.hidden_size, call.rows,
                                  config.layers > 1 ? call.rows * config.width() : 0);
  std::vector<StepArguments<Real>> steps;
  steps.reserve(static_cast<std::size_t>(config.layers * config.directions));
  StateRows<const Real> x = {call.x.data, call.x.row};
  for (int layer = 0; layer < config.layers; ++layer) {
    const bool last = layer + 1 == config.layers;
    const StateRows<Real> y = {last ? call.y.data : workspace.outputs[layer % 2], last ? call.y.row : config.width()};
    for (int turn = 0; turn < config.directions; ++turn) {
      const int direction = call.reversed ? config.directions - 1 - turn : turn;
      const int index = layer * config.directions + direction;
      StepArguments<Real> a = {};
      a.input_size = config.input_of(layer);
      a.hidden_size = config.hidden_size;
      a.rows = call.rows;
      a.clip = static_cast<Real>(config.clip);
      a.reversed = call.reversed;
      if (call.packed)
        a.panels = call.packed[index];
      else
        a.weights = call.weights[index];
      a.x = x;
      a.h = or_zeros(call.initial[0].at(index), workspace.zeros);
      a.c = or_zeros(call.initial[1].at(index), workspace.zeros);
      a.h_next = call.final[0].at(index);
      a.c_next = call.final[1].at(index);
      a.y = {y.data + direction * config.hidden_size, y.row};
      a.operand = workspace.operand;
      a.kept = workspace.kept;
      steps.push_back(a);
    }
    x = {y.data, y.row};
  }
  StepTeam<Real> team(step_cost<Real>(kernels.traits, config, call.rows));
  team.run(call.packed ? kernels.panel_step : kernels.direct_step, steps.data(), steps.size(), call.threads);
}

template <class Real>
void train_single_step(const RecurrentConfig& config, const std::vector<ForwardArguments<Real>>& directions,
                       int threads) {
  const CellKernels<Real>& kernels = fusedrnn::kernels<Real>().cells[config.cell];
  const Index rows = directions[0].schedule.rows;
  const Workspace<Real> workspace(kernels.traits, config.hidden_size, rows, 0);
  std::vector<StepArguments<Real>> steps;
  for (const ForwardArguments<Real>& f : directions) {
    StepArguments<Real> a = {};
    a.input_size = f.input_size;
    a.hidden_size = f.hidden_size;
    a.rows = rows;
    a.clip = f.clip;
    a.weights = f.weights;
    a.x = {f.x.data, f.x.row};
    a.h = or_zeros(f.h0, workspace.zeros);
    a.c = or_zeros(f.c0, workspace.zeros);
    a.h_next = f.hn;
    a.c_next = f.cn;
    a.y = {f.y.data, f.y.row};
    a.gates = f.gates;
    a.cells = f.cells;
    a.operand = workspace.operand;
    a.kept = workspace.kept;
    steps.push_back(a);
  }
  StepTeam<Real> team(step_cost<Real>(kernels.traits, config, rows));
  team.run(kernels.direct_step, steps.data(), steps.size(), threads);
}

template void run_single_step(const RecurrentConfig&, const ForwardCall<float>&);
template void run_single_step(const RecurrentConfig&, const ForwardCall<double>&);
template void train_single_step(const RecurrentConfig&, const std::vector<ForwardArguments<float>>&, int);
template void train_single_step(const RecurrentConfig&, const std::vector<ForwardArguments<double>>&, int);

}  // namespace fusedrnn
