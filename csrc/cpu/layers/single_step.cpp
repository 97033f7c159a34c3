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
template <class T>
struct Workspace {
  using A = Accumulator<T>;
  Buffer buffer;
  A *zeros, *kept;
  T *operand, *outputs[2];

  // `output`: elements of a layer's output that only the next one reads.
  Workspace(const CellTraits& traits, Index hidden, Index rows, Index output) {
    const Index wide = traits.phases == 2 ? rows * padded(hidden) : 0;
    buffer = Buffer(static_cast<std::size_t>(hidden + (1 + traits.slots) * wide + 2 * output) * sizeof(A));
    zeros = buffer.as<A>();
    std::fill_n(zeros, hidden, A(0));
    kept = zeros + hidden;
    operand = reinterpret_cast<T*>(kept + traits.slots * wide);
    A* const of_layers = kept + (traits.slots + 1) * wide;
    for (int i = 0; i < 2; ++i) outputs[i] = reinterpret_cast<T*>(of_layers + i * output);
  }
};

// Zeros of an accumulator are zeros of every type.
template <class Item, class A>
StateRows<const Item> or_zeros(const StateRows<const Item>& rows, const A* zeros) {
  return rows.data ? rows : StateRows<const Item>{reinterpret_cast<const Item*>(zeros), 0};
}

}  // namespace

template <class T>
bool single_step_pays(Index rows) {
  return rows > 0 && rows <= kernels<T>().direct_rows;
}
bool packed_step_pays(Index rows) { return rows > 0 && rows <= kMostPackedRows; }
bool single_step_gradient_pays(Index rows) { return rows <= kMostGradientRows; }

template <class T>
void run_single_step(const RecurrentConfig& config, const ForwardCall<T>& call) {
  using A = Accumulator<T>;
  const CellKernels<T>& kernels = fusedrnn::kernels<T>().cells[config.cell];
  const Workspace<T> workspace(kernels.traits, config.hidden_size, call.rows,
                               config.layers > 1 ? call.rows * config.width() : 0);
  std::vector<StepArguments<T>> steps;
  steps.reserve(static_cast<std::size_t>(config.layers * config.directions));
  StateRows<const T> x = {call.x.data, call.x.row};
  for (int layer = 0; layer < config.layers; ++layer) {
    const bool last = layer + 1 == config.layers;
    const StateRows<T> y = {last ? call.y.data : workspace.outputs[layer % 2], last ? call.y.row : config.width()};
    for (int turn = 0; turn < config.directions; ++turn) {
      const int direction = call.reversed ? config.directions - 1 - turn : turn;
      const int index = layer * config.directions + direction;
      StepArguments<T> a = {};
      a.input_size = config.input_of(layer);
      a.hidden_size = config.hidden_size;
      a.rows = call.rows;
      a.clip = static_cast<A>(config.clip);
      a.reversed = call.reversed;
      if (call.packed)
        a.panels = call.packed[index];
      else
        a.weights = call.weights[index];
      a.x = x;
      a.h = or_zeros(call.initial[0].template at<const T>(index), workspace.zeros);
      a.c = or_zeros(call.initial[1].template at<const A>(index), workspace.zeros);
      a.h_next = call.final[0].template at<T>(index);
      a.c_next = call.final[1].template at<A>(index);
      a.y = {y.data + direction * config.hidden_size, y.row};
      a.operand = workspace.operand;
      a.kept = workspace.kept;
      steps.push_back(a);
    }
    x = {y.data, y.row};
  }
  StepTeam team(step_cost<T>(kernels.traits, config, call.rows));
  const auto step = call.packed ? kernels.panel_step : kernels.direct_step;
  team.run(steps.size(), call.threads, [&](std::size_t layer, Worker& worker) { step(steps[layer], worker); });
}

template <class T>
void train_single_step(const RecurrentConfig& config, const std::vector<ForwardArguments<T>>& directions, int threads) {
  const CellKernels<T>& kernels = fusedrnn::kernels<T>().cells[config.cell];
  const Index rows = directions[0].schedule.rows;
  const Workspace<T> workspace(kernels.traits, config.hidden_size, rows, 0);
  std::vector<StepArguments<T>> steps;
  for (const ForwardArguments<T>& f : directions) {
    StepArguments<T> a = {};
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
  StepTeam team(step_cost<T>(kernels.traits, config, rows));
  team.run(steps.size(), threads,
           [&](std::size_t direction, Worker& worker) { kernels.direct_step(steps[direction], worker); });
}

template bool single_step_pays<float>(Index);
template bool single_step_pays<double>(Index);
template bool single_step_pays<Bfloat16>(Index);
template void run_single_step(const RecurrentConfig&, const ForwardCall<float>&);
template void run_single_step(const RecurrentConfig&, const ForwardCall<double>&);
template void run_single_step(const RecurrentConfig&, const ForwardCall<Bfloat16>&);
template void train_single_step(const RecurrentConfig&, const std::vector<ForwardArguments<float>>&, int);
template void train_single_step(const RecurrentConfig&, const std::vector<ForwardArguments<double>>&, int);
template void train_single_step(const RecurrentConfig&, const std::vector<ForwardArguments<Bfloat16>>&, int);

}  // namespace fusedrnn
