#include "cpu/layers/recurrent.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/layers/dropout.h"
#include "cpu/layers/int8_net.h"
#include "cpu/layers/packed.h"
#include "cpu/layers/single_step.h"
#include "cpu/layers/step_cost.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/split.h"

namespace fusedrnn {
namespace {

// Bytes of gates that a chunk of time may take, and the fewest and most rows a chunk is worth. Forward, so that they
// are still in the second-level cache when the recurrence reads them. Backward, as many as the third-level cache holds:
// each chunk reads and writes the weights' gradients once.
constexpr Index kForwardChunkBytes = 768 << 10;
constexpr Index kBackwardChunkBytes = 8 << 20;
constexpr Index kLeastChunkRows = 96;
constexpr Index kMostChunkRows = 512;

// The products of a layer, forward and backward, in multiples of those of its recurrence going forward.
constexpr double kForwardProducts = 2, kBackwardProducts = 4;

// How a team divides over the directions of a layer.
struct TeamDivision {
  int groups;   // 2: the directions run side by side
  Split split;  // of a group
};

// What a step of a layer's direction costs.
template <class T>
StepCost layer_step_cost(const CellTraits& traits, const RecurrentConfig& config, const RowLists& lists, Index late) {
  const Index steps = std::max<Index>(lists.steps(), 1);
  const Index rows = std::max<Index>((lists.packed_rows() + steps - 1) / steps, 1);
  StepCost cost = step_cost<T>(traits, config, rows);
  cost.steps = steps;
  cost.ragged = lists.packed_rows() < lists.steps() * lists.rows();
  if (steps > 1) cost.inner = config.hidden_size + late;  // of a single step, x . weight_ih is as large a part
  return cost;
}

TeamDivision divide_team(const RecurrentConfig& config, const StepCost& cost, int threads) {
  TeamDivision division;
  division.groups = config.directions == 2 && threads > 1 ? 2 : 1;
  division.split = split_step(cost, threads / division.groups);
  return division;
}

// Cycles of a layer on one thread, all its products taken together `products` times as long as a step's own.
double layer_cycles(const RecurrentConfig& config, const StepCost& cost, double products) {
  return products * step_cycles(cost) * static_cast<double>(cost.steps) * config.directions;
}

// Barriers and flags of one layer's team.
struct Team {
  std::unique_ptr<Group[]> groups;
  std::unique_ptr<Barrier[]> row_barriers;  // (groups, threads)
  Barrier everyone;
  std::atomic<bool> stop{false};
  int capacity;
  explicit Team(int threads)
      : groups(new Group[2]), row_barriers(new Barrier[static_cast<std::size_t>(2) * threads]), capacity(threads) {}
};

// Runs work(direction, worker) for every direction of a layer, then rest(thread, threads) once all are done, on the
// whole team. Returns false when interrupted.
template <class Work, class Rest>
bool run_layer(const RecurrentConfig& config, const StepCost& cost, double products, int threads_allowed,
               const Interrupt& interrupt, const Work& work, const Rest& rest) {
  const TeamDivision wanted = divide_team(config, cost, threads_allowed);
  const int threads = team_size(wanted.groups * wanted.split.threads(), layer_cycles(config, cost, products));
  Team team(threads);
  parallel(threads, [&](int thread, int given) {
    const TeamDivision division = divide_team(config, cost, given);
    const int in_group = division.split.threads(), busy = division.groups * in_group;
    if (thread >= busy) return;
    const int group = thread / in_group;
    Worker worker;
    worker.thread = thread % in_group;
    worker.split = division.split;
    worker.group = &team.groups[group];
    worker.row_barrier = &team.row_barriers[group * team.capacity + worker.row_part()];
    worker.interrupt = thread == 0 && interrupt.asked ? &interrupt : nullptr;
    worker.stop = &team.stop;
    for (int direction = group; direction < config.directions; direction += division.groups) {
      work(direction, worker);
      worker.meet();
    }
    team.everyone.wait(busy);
    if (!team.stop.load(std::memory_order_relaxed)) rest(thread, busy);
  });
  return !team.stop.load();
}

Index chunk_rows_for(Index packed_rows, Index rows, Index row_bytes, Index bytes) {
  const Index wanted = std::clamp(bytes / std::max<Index>(row_bytes, 1), kLeastChunkRows, kMostChunkRows);
  return std::max<Index>({rows, std::min(wanted, packed_rows), 1});
}

template <class T>
Buffer buffer_of(Index count) {
  return Buffer(static_cast<std::size_t>(count) * sizeof(T));
}

template <class T>
Blocked<T> blocked(const Buffer& buffer, Index rows, Index width) {
  return {buffer.as<T>(), rows, width};
}

template <class T>
void clear_row(T* row, Index width) {
  std::fill_n(row, width, T{});
}

// Zeros where rows do not run, for this thread's part of the rows.
template <class T>
void clear_idle(const Schedule& schedule, Index steps, Sequence<T> sequence, Index width, int thread, int threads) {
  if (!sequence.data || sequence.starts) return;
  const Range mine = part_of(schedule.rows, thread, threads);
  for (Index p = mine.first; p < mine.last; ++p) {
    const Index length = schedule.length[p];
    for (Index t = schedule.times ? 0 : length, k = 0; t < steps; ++t) {
      if (schedule.times && k < length && schedule.times[p * schedule.steps + k] == t)
        ++k;
      else
        clear_row(sequence.at(t, schedule.row[p]), width);
    }
  }
}

// Of one direction: each state's h at the skipped steps through which it lasts, and zeros for a final state that a
// reset has cut off.
template <class T>
void repeat_states(const ForwardArguments<T>& a, int thread, int threads) {
  const Schedule& schedule = a.schedule;
  if (!schedule.repeats) return;
  const Range mine = part_of(schedule.rows, thread, threads);
  for (Index p = mine.first; p < mine.last; ++p) {
    const Index b = schedule.row[p];
    for (Index state = 0; state <= schedule.length[p]; ++state) {
      const T* h = state > 0 ? a.y.at(schedule.time(state - 1, p), b) : a.h0.data ? a.h0.at(b) : nullptr;
      for (Index i = 0; h && i < schedule.repeats_of(state, p); ++i)
        std::copy_n(h, a.hidden_size, a.y.at(schedule.skipped_time(state, p, i), b));
    }
    if (!schedule.cut_at_end(p)) continue;
    if (a.hn.data) clear_row(a.hn.at(b), a.hidden_size);
    if (a.cn.data) clear_row(a.cn.at(b), a.hidden_size);
  }
}

// Whether the tape's gates are others than the sums they come from.
template <class T>
constexpr bool keeps_gates = !std::is_same_v<Gate<T>, Accumulator<T>>;

// Workspace of one direction going forward.
template <class T>
struct ForwardWorkspace {
  using A = Accumulator<T>;
  Buffer packed, h, carry, operand, pointers, gates, x_rows, ready;

  void allocate(const CellTraits& traits, int threads, ForwardArguments<T>& a) {
    const Index hidden = padded(a.hidden_size), rows = a.schedule.rows;
    if (!a.packed.weight_ih && a.weights.weight_ih) {
      packed = Buffer(packed_bytes<T>(traits, a.input_size, a.hidden_size));
      a.fresh = lay_out_packed<T>(traits, a.input_size, a.hidden_size, packed.template as<char>());
      a.packed = a.fresh.read_only();
    }
    h = buffer_of<A>(2 * rows * hidden);
    carry = buffer_of<A>(traits.states == 2 ? rows * hidden : 0);
    operand = buffer_of<A>(traits.phases == 2 ? rows * hidden : 0);
    pointers = buffer_of<const void*>(threads * a.chunk_rows);
    if (kernels<T>().widens) {
      x_rows = buffer_of<A>(a.chunk_rows * (a.input_size + a.input_size % 2));
      ready = buffer_of<A>(threads * kReadyElements);
      a.x_rows = x_rows.data();
      a.ready = ready.template as<A>();
    }
    a.h = h.data();
    a.carry = blocked<A>(carry, rows, kBlock);
    a.operand = operand.data();
    a.pointers = pointers.template as<const void*>();
    if (a.training && !keeps_gates<T>) return;
    gates = buffer_of<A>(a.chunk_rows * traits.slots * hidden);
    a.gates = blocked<A>(gates, a.chunk_rows, traits.slots * kBlock);
  }
};

// The caller's state, copied so that the tape does not depend on it.
template <class T>
void keep_state(const StateRows<const T>& from, Index rows, Index hidden, Buffer& kept) {
  if (!from.data || kept.data()) return;
  kept = buffer_of<T>(rows * hidden);
  for (Index b = 0; b < rows; ++b) std::copy_n(from.at(b), hidden, kept.as<T>() + b * hidden);
}

// Segments whose entering c is kept: all but the first.
Index kept_segments(const Schedule& schedule, Index segment) {
  return std::max<Index>(schedule.steps - 1, 0) / segment;
}

template <class T>
void lay_out_segments(Index segment, const Buffer& entering, ForwardArguments<T>& a) {
  a.segment = segment;
  a.entering = blocked<Accumulator<T>>(entering, kept_segments(a.schedule, segment) * a.schedule.rows, kBlock);
}

template <class T>
void lay_out_gates(const Buffer& buffer, Index rows, Index width, ForwardArguments<T>& a) {
  if constexpr (keeps_gates<T>)
    a.kept = blocked<Gate<T>>(buffer, rows, width);
  else
    a.gates = blocked<Gate<T>>(buffer, rows, width);
}

template <class T>
void fill_tape(const CellTraits& traits, Index recompute, ForwardArguments<T>& a, typename Tape<T>::Direction& tape,
               Index packed_rows) {
  using A = Accumulator<T>;
  const Index hidden = padded(a.hidden_size);
  keep_state(a.h0, a.schedule.rows, a.hidden_size, tape.initial[0]);
  keep_state(a.c0, a.schedule.rows, a.hidden_size, tape.initial[1]);
  if (recompute > 0) {
    if (traits.states == 2) tape.cells = buffer_of<A>(kept_segments(a.schedule, recompute) * a.schedule.rows * hidden);
    return lay_out_segments(recompute, tape.cells, a);
  }
  if (!tape.gates.data()) tape.gates = buffer_of<Gate<T>>(packed_rows * hidden * traits.slots);
  lay_out_gates(tape.gates, packed_rows, traits.slots * kBlock, a);
  if (traits.states == 2) {
    if (!tape.cells.data()) tape.cells = buffer_of<A>(packed_rows * hidden);
    a.cells = blocked<A>(tape.cells, packed_rows, kBlock);
  }
}

DropoutKey dropout_key(const RecurrentConfig& config, std::uint64_t call, int layer) {
  return {config.dropout, config.seed, call, layer};
}

// Rows of a call's sequence arrays: padded or packed.
template <class T>
Index sequence_rows(const ForwardCall<T>& call) {
  return call.lists->starts() ? call.lists->packed_rows() : call.steps * call.rows;
}

template <class T, class Item>
Sequence<Item> time_major(const ForwardCall<T>& call, Item* data, Index width) {
  return {data, call.rows * width, width, call.lists->starts()};
}

template <class T>
Sequence<const T> read_only(const Sequence<T>& sequence) {
  return {sequence.data, sequence.time, sequence.row, sequence.starts};
}

template <class T>
ForwardArguments<T> forward_arguments(const CellTraits& traits, const RecurrentConfig& config,
                                      const ForwardCall<T>& call, int layer, int direction, Sequence<const T> x,
                                      Sequence<T> y, bool training) {
  using A = Accumulator<T>;
  const int index = layer * config.directions + direction;
  ForwardArguments<T> a = {};
  a.input_size = config.input_of(layer);
  a.hidden_size = config.hidden_size;
  a.schedule = call.lists->schedule(config.reversed(direction));
  a.clip = static_cast<A>(config.clip);
  if (call.packed)
    a.packed = call.packed[index];
  else if (!call.int8)
    a.weights = call.weights[index];
  a.x = x;
  a.y = y;
  if (a.y.data) a.y.data += direction * config.hidden_size;
  a.h0 = call.initial[0].template at<const T>(index);
  a.c0 = call.initial[1].template at<const A>(index);
  a.hn = call.final[0].template at<T>(index);
  a.cn = call.final[1].template at<A>(index);
  a.training = training;
  a.late = call.late;
  a.chunk_rows = chunk_rows_for(call.lists->packed_rows(), call.rows,
                                padded(config.hidden_size) * traits.slots * sizeof(A), kForwardChunkBytes);
  return a;
}

template <class Rest>
bool forward_int8_layer(const RecurrentConfig& config, const ForwardCall<float>& call, int layer,
                        const std::vector<ForwardArguments<float>>& arguments, const StepCost& cost, const Rest& rest) {
  const Int8CellKernels& kernels = int8_kernels().cells[config.cell];
  std::vector<Int8Workspace> workspace(arguments.size());
  std::vector<Int8Direction> directions;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const ForwardArguments<float>& a = arguments[i];
    workspace[i].allocate({kernels.traits, a.input_size, a.hidden_size}, a.chunk_rows, a.schedule.rows, call.threads);
    directions.push_back(workspace[i].direction(call.int8->direction(layer * config.directions + static_cast<int>(i))));
  }
  return run_layer(
      config, int8_step_cost(cost), kForwardProducts, call.threads, call.interrupt,
      [&](int direction, Worker& worker) { kernels.forward(arguments[direction], directions[direction], worker); },
      rest);
}

template <class T>
bool forward_layer(const RecurrentConfig& config, const ForwardCall<T>& call, int layer, Sequence<const T> x,
                   Sequence<T> y, Tape<T>* tape) {
  const CellKernels<T>& kernels = fusedrnn::kernels<T>().cells[config.cell];
  std::vector<ForwardArguments<T>> arguments;
  std::vector<ForwardWorkspace<T>> workspace(config.directions);
  const bool keep_all = tape && call.recompute == 0;
  const bool direct =
      keep_all && call.late.size == 0 && call.steps == 1 && call.lists->whole(1) && single_step_pays<T>(call.rows);
  for (int direction = 0; direction < config.directions; ++direction) {
    arguments.push_back(forward_arguments(kernels.traits, config, call, layer, direction, x, y, keep_all));
    if (tape)
      fill_tape(kernels.traits, call.recompute, arguments.back(),
                tape->directions[layer * config.directions + direction], call.lists->packed_rows());
    if (!direct) workspace[direction].allocate(kernels.traits, call.threads, arguments.back());
  }
  if (direct) {
    train_single_step(config, arguments, call.threads);
    return true;
  }
  const StepCost cost = layer_step_cost<T>(kernels.traits, config, *call.lists, call.late.size);
  const auto rest = [&](int thread, int threads) {
    clear_idle(arguments[0].schedule, call.steps, y, config.width(), thread, threads);
    for (const ForwardArguments<T>& direction : arguments) repeat_states(direction, thread, threads);
  };
  if constexpr (std::is_same_v<T, float>)
    if (call.int8) return forward_int8_layer(config, call, layer, arguments, cost, rest);
  return run_layer(
      config, cost, kForwardProducts, call.threads, call.interrupt,
      [&](int direction, Worker& worker) { kernels.forward(arguments[direction], worker); }, rest);
}

// Workspace of one direction that replays segments of the forward pass.
template <class T>
struct ReplayWorkspace {
  using A = Accumulator<T>;
  ForwardArguments<T> arguments;
  ForwardWorkspace<T> forward;
  Buffer gates, cells;

  // Makes the arguments of a direction's backward pass refer to a replay. No outputs are written again.
  void attach(const CellTraits& traits, const Tape<T>& tape, int layer, int direction, int threads,
              BackwardArguments<T>& backward) {
    const ForwardCall<T>& call = tape.call;
    arguments = forward_arguments(traits, tape.config, call, layer, direction, backward.x, Sequence<T>{}, true);
    arguments.known_y = backward.y;
    arguments.h0 = backward.h0;
    arguments.c0 = backward.c0;
    lay_out_segments(call.recompute, tape.directions[layer * tape.config.directions + direction].cells, arguments);
    forward.allocate(traits, threads, arguments);
    // No segment has more rows than the first: rows only ever end.
    const Schedule& schedule = arguments.schedule;
    const Index rows = schedule.offset[std::min(call.recompute, schedule.steps)],
                hidden = padded(arguments.hidden_size);
    gates = buffer_of<Gate<T>>(rows * hidden * traits.slots);
    lay_out_gates(gates, rows, traits.slots * kBlock, arguments);
    cells = buffer_of<A>(traits.states == 2 ? rows * hidden : 0);
    arguments.cells = blocked<A>(cells, rows, kBlock);
    backward.gates = {gates.template as<const Gate<T>>(), rows, traits.slots * kBlock};
    backward.cells = {arguments.cells.data, rows, kBlock};
    backward.replay = &arguments;
  }
};

// Workspace of one direction going backward.
template <class T>
struct BackwardWorkspace {
  using A = Accumulator<T>;
  Buffer packed_ih, packed_hh, per_unit, dgates, x_panel, h_panel, operand_panel, dgate_pairs, operand_rows;
  Buffer ready, dh, doperand, carry, dx, dlate;
  States<Buffer> measured;

  void allocate(const CellTraits& traits, int threads, BackwardArguments<T>& a) {
    const Index blocks = blocks_of(a.hidden_size), hidden = blocks * kBlock, rows = a.schedule.rows;
    const Index inputs = padded(a.input_size);
    packed_ih = buffer_of<T>(inputs * packed_inner<T>(hidden * traits.input.count));
    Index recurrent = 0;
    for (int phase = 0; phase < traits.phases; ++phase)
      recurrent += hidden * packed_inner<T>(hidden * traits.recurrent[phase].count);
    packed_hh = buffer_of<T>(recurrent);
    per_unit = buffer_of<A>(hidden * std::max(traits.per_unit.rows, 1));
    allocate_panels(traits, a);
    if (kernels<T>().widens) {
      ready = buffer_of<A>(threads * kReadyElements);
      a.ready = ready.template as<A>();
    }
    dh = buffer_of<A>(rows * hidden);
    doperand = buffer_of<A>(traits.phases == 2 ? rows * hidden : 0);
    carry = buffer_of<A>(traits.states == 2 ? rows * hidden : 0);
    const Index early = (a.input_size - a.late.size) / kBlock * kBlock;
    dlate = buffer_of<A>(a.late.size > 0 ? rows * (inputs - early) : 0);
    a.packed_ih = packed_ih.template as<T>();
    a.packed_hh = packed_hh.template as<T>();
    a.per_unit = per_unit.template as<A>();
    a.dh = dh.template as<A>();
    a.doperand = doperand.template as<A>();
    a.carry = blocked<A>(carry, rows, kBlock);
    a.dlate = dlate.template as<A>();
  }

 private:
  void allocate_panels(const CellTraits& traits, BackwardArguments<T>& a) {
    constexpr bool pairs = sizeof(T) == 2;
    // In pairs, room for a part of a group before a chunk's rows and one after them.
    const Index rows = a.chunk_rows + (pairs ? 2 * kPairGroup : 0), hidden = padded(a.hidden_size);
    const Index operand = traits.phases == 2 ? rows * hidden : 0;
    dgates = buffer_of<A>(rows * hidden * traits.slots);
    x_panel = buffer_of<T>(rows * padded(a.input_size));
    h_panel = buffer_of<T>(rows * hidden);
    operand_panel = buffer_of<T>(operand);
    if (pairs) dgate_pairs = buffer_of<T>(rows * hidden * traits.slots);
    if (pairs && operand > 0) operand_rows = buffer_of<T>(operand);
    a.dgates = {dgates.data(), rows, kBlock};
    a.x_panel = blocked<T>(x_panel, rows, kBlock);
    a.h_panel = blocked<T>(h_panel, rows, kBlock);
    a.operand_panel = blocked<T>(operand_panel, rows, kBlock);
    a.dgate_pairs = blocked<T>(dgate_pairs, rows, kBlock);
    if (pairs && operand > 0) a.operand_rows = blocked<T>(operand_rows, rows, kBlock);
  }
};

template <class T>
BackwardArguments<T> backward_arguments(const CellTraits& traits, const Tape<T>& tape, const BackwardCall<T>& call,
                                        int layer, int direction, Sequence<const T> x, Sequence<const T> y,
                                        Sequence<const T> dy) {
  const RecurrentConfig& config = tape.config;
  const int index = layer * config.directions + direction;
  const typename Tape<T>::Direction& kept = tape.directions[index];
  using A = Accumulator<T>;
  const Index offset = direction * config.hidden_size, packed_rows = tape.call.lists->packed_rows();
  BackwardArguments<T> a = {};
  a.input_size = config.input_of(layer);
  a.hidden_size = config.hidden_size;
  a.schedule = tape.call.lists->schedule(config.reversed(direction));
  a.clip = static_cast<A>(config.clip);
  a.weights = tape.call.weights[index];
  a.x = x;
  a.y = y;
  a.y.data += offset;
  a.dy = dy;
  if (a.dy.data) a.dy.data += offset;
  a.h0 = {kept.initial[0].template as<const T>(), config.hidden_size};
  a.c0 = {kept.initial[1].template as<const A>(), config.hidden_size};
  a.dhn = call.dfinal[0].template at<const T>(index);
  a.dcn = call.dfinal[1].template at<const A>(index);
  a.dh0 = call.dinitial[0].template at<T>(index);
  a.dc0 = call.dinitial[1].template at<A>(index);
  a.gradients = call.gradients[index];
  a.accumulate = call.accumulate;
  a.gates = {kept.gates.template as<const Gate<T>>(), packed_rows, traits.slots * kBlock};
  a.cells = {kept.cells.template as<const A>(), packed_rows, kBlock};
  a.chunk_rows = chunk_rows_for(packed_rows, tape.call.rows, padded(config.hidden_size) * traits.slots * sizeof(A),
                                kBackwardChunkBytes);
  a.late = call.late;
  a.direct = a.late.size == 0 && a.schedule.steps == 1 && single_step_gradient_pays(a.schedule.rows);
  return a;
}

// Where a direction's norms of the states' gradients go, and memory for the gradients.
template <class T>
void attach_norms(const CellTraits& traits, const Tape<T>& tape, const BackwardCall<T>& call, int index,
                  BackwardWorkspace<T>& workspace, BackwardArguments<T>& a) {
  using A = Accumulator<T>;
  const Index all = tape.call.steps * tape.call.rows, rows = a.schedule.repeats ? all : a.chunk_rows;
  for (int state = 0; state < traits.states && call.norms[state].data; ++state) {
    a.norms[state] = call.norms[state];
    a.norms[state].data += index * all;
    workspace.measured[state] = buffer_of<A>(rows * padded(a.hidden_size));
    a.measured[state] = blocked<A>(workspace.measured[state], rows, kBlock);
  }
}

// dx += the reverse direction's, for this thread's part of the steps.
template <class T>
void add_sequence(const ForwardCall<T>& call, Sequence<const T> from, Sequence<T> to, Range steps, Index width) {
  if (call.rows == 0) return;  // rather than count the steps of nothing
  const Index* starts = call.lists->starts();
  for (Index t = steps.first; t < steps.last; ++t)
    for (Index b = 0; b < (starts ? starts[t + 1] - starts[t] : call.rows); ++b) {
      const T* source = from.at(t, b);
      T* target = to.at(t, b);
      for (Index i = 0; i < width; ++i) target[i] = narrow<T>(widen(target[i]) + widen(source[i]));
    }
}

template <class T>
bool backward_layer(const Tape<T>& tape, const BackwardCall<T>& call, int layer, Sequence<const T> x,
                    Sequence<const T> y, Sequence<const T> dy, Sequence<T> dx) {
  const RecurrentConfig& config = tape.config;
  const CellKernels<T>& kernels = fusedrnn::kernels<T>().cells[config.cell];
  const Index steps = tape.call.steps, width = config.input_of(layer) - call.late.size;
  std::vector<BackwardArguments<T>> arguments;
  std::vector<BackwardWorkspace<T>> workspace(config.directions);
  std::vector<ReplayWorkspace<T>> replays(tape.call.recompute > 0 ? config.directions : 0);
  for (int direction = 0; direction < config.directions; ++direction) {
    arguments.push_back(backward_arguments(kernels.traits, tape, call, layer, direction, x, y, dy));
    workspace[direction].allocate(kernels.traits, call.threads, arguments.back());
    attach_norms(kernels.traits, tape, call, layer * config.directions + direction, workspace[direction],
                 arguments.back());
    if (!replays.empty())
      replays[direction].attach(kernels.traits, tape, layer, direction, call.threads, arguments.back());
    arguments.back().dx = dx;
    if (direction == 1 && dx.data) {  // the directions run side by side: each writes a dx of its own
      workspace[1].dx = buffer_of<T>(sequence_rows(tape.call) * width);
      arguments.back().dx = time_major(tape.call, workspace[1].dx.template as<T>(), width);
    }
  }
  return run_layer(
      config, layer_step_cost<T>(kernels.traits, config, *tape.call.lists, call.late.size), kBackwardProducts,
      call.threads, call.interrupt,
      [&](int direction, Worker& worker) {
        const BackwardArguments<T>& a = arguments[direction];
        clear_idle(a.schedule, steps, a.dx, width, worker.thread, worker.threads());
        for (const Sequence<T>& norms : a.norms)
          clear_idle(a.schedule, steps, norms, 1, worker.thread, worker.threads());
        kernels.backward(a, worker);
      },
      [&](int thread, int threads) {
        if (config.directions == 2 && dx.data)
          add_sequence(tape.call, read_only(arguments[1].dx), dx, part_of(steps, thread, threads), width);
      });
}

template <class T>
Sequence<const T> dropped(const RecurrentConfig& config, const ForwardCall<T>& call, int layer, Sequence<const T> y,
                          Buffer& buffer) {
  if (config.dropout == 0) return y;
  buffer = buffer_of<T>(sequence_rows(call) * config.width());
  const Sequence<T> to = time_major(call, buffer.as<T>(), config.width());
  apply_dropout(dropout_key(config, call.call, layer), y, to, 0, call.steps, call.rows, config.width());
  return read_only(to);
}

}  // namespace

template <class T>
std::size_t Tape<T>::bytes() const {
  std::size_t bytes = call.lists->bytes();
  for (const Direction& d : directions) {
    bytes += d.gates.bytes() + d.cells.bytes();
    for (const Buffer& state : d.initial) bytes += state.bytes();
  }
  for (const Buffer& output : outputs) bytes += output.bytes();
  return bytes;
}

std::vector<CellTraits> registered_cells() {
  const Kernels<float>& table = kernels<float>();
  std::vector<CellTraits> cells;
  for (int cell = 0; cell < table.cell_count; ++cell) cells.push_back(table.cells[cell].traits);
  return cells;
}

template <class T>
Index tape_row_elements(const RecurrentConfig& config) {
  constexpr Index of_gate = sizeof(Gate<T>) / sizeof(T), of_sum = sizeof(Accumulator<T>) / sizeof(T);
  const CellTraits& traits = kernels<T>().cells[config.cell].traits;
  const Index kept = padded(config.hidden_size) * (traits.slots * of_gate + (traits.states - 1) * of_sum);
  return config.layers * config.directions * kept + (config.layers - 1) * config.width();
}

template <class T>
void borrow_tape(const ForwardCall<T>& call, char* memory, Tape<T>& tape) {
  using A = Accumulator<T>;
  const RecurrentConfig& config = tape.config;
  const CellTraits& traits = kernels<T>().cells[config.cell].traits;
  const Index rows = sequence_rows(call), hidden = padded(config.hidden_size);
  const Index state = call.rows * config.hidden_size;
  const auto next = [&memory](Index elements, std::size_t size) {
    const std::size_t bytes = static_cast<std::size_t>(elements) * size;
    Buffer part = Buffer::view(memory, bytes);
    memory += bytes;
    return part;
  };
  const auto lent = [state](auto rows) {
    using Item = std::remove_const_t<std::remove_pointer_t<decltype(rows.data)>>;
    return Buffer::view(const_cast<Item*>(rows.data), static_cast<std::size_t>(state) * sizeof(Item));
  };
  tape.directions.resize(config.layers * config.directions);
  tape.outputs.resize(config.layers - 1);
  for (std::size_t i = 0; i < tape.directions.size(); ++i) {
    tape.directions[i].gates = next(rows * hidden * traits.slots, sizeof(Gate<T>));
    if (traits.states == 2) tape.directions[i].cells = next(rows * hidden, sizeof(A));
    const int index = static_cast<int>(i);
    tape.directions[i].initial[0] = lent(call.initial[0].template at<const T>(index));
    if (traits.states == 2) tape.directions[i].initial[1] = lent(call.initial[1].template at<const A>(index));
  }
  for (Buffer& output : tape.outputs) output = next(rows * config.width(), sizeof(T));
}

template <class T>
bool run_forward(const RecurrentConfig& config, const ForwardCall<T>& call, Tape<T>* tape) {
  if (tape) {
    tape->directions.resize(config.layers * config.directions);
    tape->outputs.resize(config.layers - 1);
  }
  Sequence<const T> x = call.x;
  Buffer previous, masked;
  for (int layer = 0; layer < config.layers; ++layer) {
    Sequence<T> y = call.y;
    Buffer output;
    if (layer + 1 < config.layers) {
      if (tape) output = std::move(tape->outputs[layer]);
      if (!output.data()) output = buffer_of<T>(sequence_rows(call) * config.width());
      y = time_major(call, output.as<T>(), config.width());
    }
    if (!forward_layer(config, call, layer, x, y, tape)) return false;
    if (layer + 1 == config.layers) break;
    x = tape ? dropped(config, call, layer, read_only(y), masked) : read_only(y);
    if (tape)
      tape->outputs[layer] = std::move(output);
    else
      previous = std::move(output);
  }
  return true;
}

template <class T>
bool run_backward(const Tape<T>& tape, const BackwardCall<T>& call) {
  const RecurrentConfig& config = tape.config;
  const auto output_of = [&](int layer) {
    if (layer + 1 == config.layers) return read_only(tape.call.y);
    return time_major(tape.call, tape.outputs[layer].template as<const T>(), config.width());
  };
  Sequence<const T> dy = call.dy;
  Buffer gradient, masked;
  for (int layer = config.layers; layer-- > 0;) {
    const Sequence<const T> x =
        layer == 0 ? tape.call.x : dropped(config, tape.call, layer - 1, output_of(layer - 1), masked);
    Sequence<T> dx = call.dx;
    Buffer below;
    if (layer > 0) {
      below = buffer_of<T>(sequence_rows(tape.call) * config.width());
      dx = time_major(tape.call, below.template as<T>(), config.width());
    }
    if (!backward_layer(tape, call, layer, x, output_of(layer), dy, dx)) return false;
    if (layer > 0 && config.dropout > 0)
      apply_dropout(dropout_key(config, tape.call.call, layer - 1), read_only(dx), dx, 0, tape.call.steps,
                    tape.call.rows, config.width());
    gradient = std::move(below);
    dy = read_only(dx);
  }
  return true;
}

#define FUSEDRNN_INSTANTIATE(T)                                                       \
  template struct Tape<T>;                                                            \
  template Index tape_row_elements<T>(const RecurrentConfig&);                        \
  template void borrow_tape(const ForwardCall<T>&, char*, Tape<T>&);                  \
  template bool run_forward(const RecurrentConfig&, const ForwardCall<T>&, Tape<T>*); \
  template bool run_backward(const Tape<T>&, const BackwardCall<T>&);
FUSEDRNN_INSTANTIATE(float)
FUSEDRNN_INSTANTIATE(double)
FUSEDRNN_INSTANTIATE(Bfloat16)
#undef FUSEDRNN_INSTANTIATE

}  // namespace fusedrnn
