#include "cpu/layers/attention_decoder.h"

#include <algorithm>

#include "common/dropout_hash.h"
#include "cpu/isa.h"

namespace fusedrnn {
namespace {

template <class Real>
using Arguments = AdditiveAttentionArguments<Real>;

template <class Real>
Buffer buffer_of(Index count) {
  return Buffer(static_cast<std::size_t>(count) * sizeof(Real));
}
template <class Real>
Buffer zeros_of(Index count) {
  Buffer buffer = buffer_of<Real>(count);
  std::fill_n(buffer.as<Real>(), count, Real(0));
  return buffer;
}

// What the drivers of the recurrence call: the kernels of attention on the step at hand.

template <class Real>
void make_context(const void* owner, const LateStep<Real>& step, Worker& worker) {
  Arguments<Real> a = *static_cast<const Arguments<Real>*>(owner);
  a.first_step = step.step;
  a.last_step = step.step + 1;
  a.state = step.h;
  operations<Real>().additive_attention.forward(a, worker);
}

template <class Real>
void take_gradient(const void* owner, const LateStep<Real>& step, Worker& worker) {
  Arguments<Real> a = *static_cast<const Arguments<Real>*>(owner);
  a.first_step = step.step;
  a.last_step = step.step + 1;
  a.late = step.gradient;
  a.dh = step.dh;
  a.dh_blocks = step.blocks;
  operations<Real>().additive_attention.backward(a, worker);
}

template <class Real>
void end_chunk(const void* owner, const LateStep<Real>& step, Worker& worker) {
  Arguments<Real> a = *static_cast<const Arguments<Real>*>(owner);
  a.part = Arguments<Real>::Part::chunk;
  a.dquery_panel.data += step.chunk_row * kBlock;
  a.h_panel = step.h_panel;
  a.chunk_rows = step.chunk_rows;
  a.adding = step.adding;
  operations<Real>().additive_attention.backward(a, worker);
}

template <class Real>
LateInput<Real> late_input(Index size, const Sequence<Real>& context, const Arguments<Real>& arguments) {
  return {size, context, &arguments, make_context<Real>, take_gradient<Real>, end_chunk<Real>};
}

// What every step of a call has in common.
template <class Real>
Arguments<Real> common_arguments(const DecoderConfig& config, const DecoderCall<Real>& call,
                                 const ProjectedMemory<Real>& memory) {
  Arguments<Real> a = {};
  a.memory = memory.view(call.memory);
  a.weight_score = memory.weight_score();
  a.query_size = config.net.hidden_size;
  a.weight_query = call.attention.weight_query;
  a.schedule = call.net.lists->schedule(false);
  a.attention = call.shares;
  a.locations = call.memory.locations;
  a.context = call.context;
  a.location = call.location;
  a.log_prob = call.log_prob;
  a.entropy = call.entropy;
  return a;
}

// Workspace of a step's rows.
template <class Real>
struct Workspace {
  Buffer query, scores, shares, location;

  void allocate(Arguments<Real>& a) {
    const Index rows = a.schedule.rows;
    query = buffer_of<Real>(2 * rows * a.memory.width());
    scores = buffer_of<Real>(rows * padded(a.locations));
    a.query = query.template as<Real>();
    a.scores = scores.template as<Real>();
  }
  // Of those that nobody keeps, one step's exist.
  void allocate_outputs(Arguments<Real>& a) {
    const Index rows = a.schedule.rows;
    if (!a.attention.data) {
      shares = buffer_of<Real>(rows * a.locations);
      a.attention = {shares.template as<Real>(), 0, a.locations};
    }
    if (!a.location.data) {
      location = buffer_of<std::int64_t>(rows);
      a.location = {location.as<std::int64_t>(), 0, 1};
    }
  }
};

// Zeros, or another value, where rows do not run.
template <class Real>
void fill_idle(const Schedule& schedule, Index steps, const Sequence<Real>& to, Index width, Real value) {
  if (!to.data) return;
  for (Index p = 0; p < schedule.rows; ++p)
    for (Index t = schedule.length[p]; t < steps; ++t) std::fill_n(to.at(t, schedule.row[p]), width, value);
}

}  // namespace

template <class Real>
bool run_decoder_forward(const DecoderConfig& config, DecoderCall<Real>& call, DecoderTape<Real>* tape) {
  ProjectedMemory<Real> memory(call.memory);
  if (!memory.project(call.memory, call.attention, call.net.interrupt)) return false;
  Arguments<Real> a = common_arguments(config, call, memory);
  if (config.hard) a.kind = call.draw ? Attention::drawn : Attention::most_probable;
  a.key = DropoutHash::stream(config.net.seed, call.net.call, 0);
  PackedQuery<Real> query;
  query.pack(a, false);
  Workspace<Real> workspace;
  workspace.allocate(a);
  workspace.allocate_outputs(a);
  call.net.late = late_input(config.features, call.context, a);
  const bool finished = run_forward(config.net, call.net, tape ? &tape->net : nullptr);
  call.net.late = {};
  if (!finished) return false;
  fill_idle(a.schedule, call.net.steps, call.context, config.features, Real(0));
  if (!tape) return true;
  fill_idle(a.schedule, call.net.steps, call.shares, call.memory.locations, Real(0));
  fill_idle(a.schedule, call.net.steps, call.location, 1, std::int64_t(-1));
  fill_idle(a.schedule, call.net.steps, call.log_prob, 1, Real(0));
  fill_idle(a.schedule, call.net.steps, call.entropy, 1, Real(0));
  memory.drop_values();
  tape->memory = std::move(memory);
  call.net.interrupt = {};
  call.net.initial = {};  // the tape has copies of its own
  call.net.final = {};
  tape->net.call = call.net;
  tape->call = std::move(call);
  return true;
}

template <class Real>
bool run_decoder_backward(const DecoderConfig& config, const DecoderTape<Real>& tape,
                          const DecoderGradients<Real>& gradients) {
  const DecoderCall<Real>& call = tape.call;
  const Interrupt& interrupt = gradients.net.interrupt;
  const Index steps = call.net.steps, rows = call.net.rows, features = config.features;
  ProjectedMemory<Real> memory = tape.memory.lent_keys();
  if (!memory.stage(call.memory, call.attention, interrupt)) return false;
  Arguments<Real> a = common_arguments(config, call, memory);
  const Index width = a.memory.width(), packed_rows = call.net.lists->packed_rows(), locations = call.memory.total();
  if (config.hard) a.kind = Attention::drawn;
  a.outputs = {call.net.y.data, call.net.y.time, call.net.y.row};
  a.initial = {tape.net.directions[0].initial[0].template as<const Real>(), config.net.hidden_size};
  a.dcontext = gradients.dcontext;
  a.dlog_prob = gradients.dlog_prob;
  a.dentropy = gradients.dentropy;
  a.dweight_query = gradients.attention.weight_query;
  PackedQuery<Real> query;
  query.pack(a, true);
  Workspace<Real> workspace;
  workspace.allocate(a);
  const Buffer total = buffer_of<Real>(steps * rows * features), dquery = buffer_of<Real>(packed_rows * width),
               dkeys = zeros_of<Real>(locations * width), dscore = zeros_of<Real>(rows * width),
               dvalues = buffer_of<Real>(locations * features);
  a.total = {total.as<Real>(), rows * features, features};
  a.dquery_panel = {dquery.as<Real>(), packed_rows, kBlock};
  a.dkeys = dkeys.as<Real>();
  a.dscore = dscore.as<Real>();
  BackwardCall<Real> net = gradients.net;
  net.late = late_input(features, call.context, a);
  if (!run_backward(tape.net, net)) return false;
  add_up_scores<Real>(a.dscore, rows, config.size, net.accumulate, gradients.attention.weight_score);
  if (packed_rows == 0 && !net.accumulate)
    std::fill_n(gradients.attention.weight_query, config.size * config.net.hidden_size, Real(0));
  if (!memory.differentiate(call.memory, call.attention, a.dkeys, gradients.attention, net.accumulate,
                            dvalues.as<Real>(), interrupt))
    return false;
  a.part = Arguments<Real>::Part::memory;
  a.last_step = steps;
  a.dvalues = dvalues.as<Real>();
  a.dmemory = gradients.dmemory;
  return run_attention(a, true, interrupt);
}

template <class Real>
DecoderStream<Real>::DecoderStream(const DecoderConfig& config, const std::vector<Weights<Real>>& weights,
                                   const AttentionArrays<const Real>& attention, AttentionSizes<Real> memory,
                                   int threads)
    : config_(config),
      net_(config.net, weights, threads),
      memory_(std::move(memory)),
      projected_(memory_),
      states_(fusedrnn::kernels<Real>().cells[config.net.cell].traits.states),
      memory_row_(static_cast<std::size_t>(memory_.rows)) {
  for (std::size_t b = 0; b < memory_row_.size(); ++b) memory_row_[b] = static_cast<Index>(b);
  for (int i = 0; i < states_; ++i) state_[i].assign(memory_row_.size() * config.net.hidden_size, Real(0));
  Arguments<Real> a = {};
  a.memory = projected_.view(memory_);
  a.query_size = config.net.hidden_size;
  a.weight_query = attention.weight_query;
  query_.pack(a, false);
}

template <class Real>
bool DecoderStream<Real>::begin(const AttentionArrays<const Real>& attention, const Interrupt& interrupt) {
  if (!projected_.project(memory_, attention, interrupt)) return false;
  projected_.own_values(memory_);
  return true;
}

template <class Real>
bool DecoderStream<Real>::step(StateRows<const Real> x, Real* y, Real* context, Real* shares, int threads,
                               const Interrupt& interrupt) {
  const Index hidden = config_.net.hidden_size, features = config_.features;
  DecoderCall<Real> call;
  call.net.steps = 1;
  call.net.rows = rows();
  net_.use_in(call.net);
  call.net.x = {x.data, 0, x.row};
  call.net.y = {y, 0, hidden};
  for (int i = 0; i < states_; ++i) {
    next_[i].resize(state_[i].size());
    call.net.initial[i] = {state_[i].data(), 0, hidden};
    call.net.final[i] = {next_[i].data(), 0, hidden};
  }
  call.net.lists = std::make_shared<const RowLists>(1, rows(), nullptr, Flags{}, Flags{});
  call.net.threads = threads;
  call.net.interrupt = interrupt;
  call.context = {context, 0, features};
  call.shares = {shares, 0, memory_.locations};
  call.memory.locations = memory_.locations;
  Arguments<Real> a = common_arguments(config_, call, projected_);
  a.memory = projected_.view(memory_);
  a.memory_row = memory_row_.data();
  a.packed_query = query_.forward.template as<Real>();
  if (config_.hard) a.kind = Attention::most_probable;
  Workspace<Real> workspace;
  workspace.allocate(a);
  workspace.allocate_outputs(a);
  call.net.late = late_input(features, call.context, a);
  if (!run_forward<Real>(config_.net, call.net, nullptr)) return false;
  for (int i = 0; i < states_; ++i) state_[i].swap(next_[i]);
  return true;
}

template <class Real>
void DecoderStream<Real>::select(const std::vector<Index>& rows) {
  const auto hidden = static_cast<std::size_t>(config_.net.hidden_size);
  std::vector<Index> memory_row;
  for (const Index row : rows) memory_row.push_back(memory_row_[static_cast<std::size_t>(row)]);
  for (int i = 0; i < states_; ++i) {
    next_[i].resize(rows.size() * hidden);
    for (std::size_t n = 0; n < rows.size(); ++n)
      std::copy_n(state_[i].data() + static_cast<std::size_t>(rows[n]) * hidden, hidden, next_[i].data() + n * hidden);
    state_[i].swap(next_[i]);
  }
  memory_row_ = std::move(memory_row);
}

template <class Real>
void DecoderStream<Real>::read_state(int state, Real* to) const {
  std::copy(state_[state].begin(), state_[state].end(), to);
}

template <class Real>
void DecoderStream<Real>::write_state(int state, const StateRows<const Real>& from) {
  const Index hidden = config_.net.hidden_size;
  for (Index b = 0; b < rows(); ++b) std::copy_n(from.at(b), hidden, state_[state].data() + b * hidden);
}

template bool run_decoder_forward(const DecoderConfig&, DecoderCall<float>&, DecoderTape<float>*);
template bool run_decoder_forward(const DecoderConfig&, DecoderCall<double>&, DecoderTape<double>*);
template bool run_decoder_backward(const DecoderConfig&, const DecoderTape<float>&, const DecoderGradients<float>&);
template bool run_decoder_backward(const DecoderConfig&, const DecoderTape<double>&, const DecoderGradients<double>&);
template class DecoderStream<float>;
template class DecoderStream<double>;

}  // namespace fusedrnn
