// How the drivers run the steps of a layer by the persistent block programs: their plan, and their arguments from the
// arrays of the stepwise kernels, which are the same. See persistent/plan.h.
#pragma once
#include <stdexcept>
#include <type_traits>

#include "cuda/engine.h"
#include "cuda/persistent/plan.h"
#include "cuda/stepwise/backward_step.h"

namespace fusedrnn {
namespace {

// Most workspace of a pass. A group of blocks keeps its weights there, one for each 32 rows of a large batch; and for
// such a batch a step is one large product anyway.
constexpr std::size_t kMostBlockBytes = std::size_t(256) << 20;

template <class T>
class BlockProgram {
  using A = Accumulator<T>;

 public:
  // Of a call that asks for it; else, and where there are no rows, it is not `active`.
  BlockProgram(const NetConfig& config, const NetForward& call, const CellTraits& traits, persistent::Pass pass)
      : traits_(traits), directions_(config.directions), active_(call.persistent && call.rows > 0) {
    if (!active_) return;
    if (const char* const reason = make(config, traits.name, call.rows, pass, plan_))
      throw std::invalid_argument(reason);
  }

  // Null, or why passes over so many rows are not run so, or with `at_once` not with all steps in one kernel.
  static const char* refusal(const NetConfig& config, const char* cell, Index rows, bool training, bool at_once) {
    for (const persistent::Pass pass : {persistent::Pass::forward, persistent::Pass::backward}) {
      if (pass == persistent::Pass::backward && !training) break;
      persistent::Plan plan;
      if (const char* const reason = make(config, cell, larger(rows, 1), pass, plan)) return reason;
      if (at_once && plan.problem.form != persistent::Form::one_kernel)
        return "the device has too few multiprocessors for the blocks that must run at once";
    }
    return nullptr;
  }

  bool active() const { return active_; }
  std::size_t workspace_bytes() const { return active_ ? plan_.workspace_bytes : 0; }

  // Steps [begin, end), from the state in a.h_out and a.c to that after them.
  void forward(Backend& backend, const StepArrays<T>& a, const T* weight_hh, Index begin, Index end,
               void* workspace) const {
    if constexpr (kCompiled) {
      persistent::ForwardProgramArguments<T> arguments = {};
      arguments.batch = batch_of(a.steps, a.hidden, begin, end);
      arguments.keep = a.keep;
      launch(backend, arguments, a.steps, workspace,
             [&](Index d) { return forward_direction(a, weight_hh, d, begin); });
    }
  }
  // Steps [a.first, end), last to first; a.dh and a.dc become the gradient of the state before them, complete.
  void backward(Backend& backend, const BackwardArrays<T>& a, const T* weight_hh, Index end, void* workspace) const {
    if constexpr (kCompiled) {
      persistent::BackwardProgramArguments<T> arguments = {};
      arguments.batch = batch_of(a.steps, a.hidden, a.first, end);
      launch(backend, arguments, a.steps, workspace, [&](Index d) { return backward_direction(a, weight_hh, d); });
    }
  }

 private:
  static constexpr bool kCompiled = !std::is_same_v<T, double>;
  static constexpr persistent::Precision kPrecision = std::is_same_v<T, Bfloat16>  ? persistent::Precision::bfloat16
                                                      : std::is_same_v<T, Float16> ? persistent::Precision::float16
                                                                                   : persistent::Precision::tf32;
  const CellTraits& traits_;
  const Index directions_;
  const bool active_;
  persistent::Plan plan_ = {};

  static const char* out_of_scope(const NetConfig& config) {
    if (std::is_same_v<T, double>) return "float64 has no block program";
    if (std::is_same_v<T, float> && !config.tf32) return "for float32 the block program needs precision='tf32'";
    return config.clip > 0 ? "the block program has no clip" : nullptr;
  }

  // All steps in a kernel where that can be, rather than one for each. Both directions in a launch, or one where both
  // are too much.
  static const char* make(const NetConfig& config, const char* cell, Index rows, persistent::Pass pass,
                          persistent::Plan& plan) {
    const char* reason = out_of_scope(config);
    if (reason) return reason;
    for (const persistent::Form form : {persistent::Form::one_kernel, persistent::Form::kernel_a_stage}) {
      if (form == persistent::Form::one_kernel && !config.loop_inside) continue;
      for (int directions = config.directions; directions > 0; --directions) {
        reason = persistent::make_plan({cell, kPrecision, pass, form, config.hidden_size, rows, directions},
                                       config.multiprocessors, plan);
        if (!reason && plan.workspace_bytes > Backend::block_bytes(kMostBlockBytes))
          reason = "the batch has so many rows that the block program would take more than 256 MiB of workspace";
        if (!reason) return nullptr;
      }
    }
    return reason;
  }

  static persistent::Batch batch_of(const Steps& steps, Index hidden, Index begin, Index end) {
    persistent::Batch batch;
    batch.rows = batch.reset_time = steps.rows;
    batch.hidden_size = hidden;
    batch.first_step = begin;
    batch.end_step = end;
    batch.total_steps = steps.steps;
    batch.lengths = steps.lengths;
    batch.reset = steps.reset;
    batch.reset_row = 1;
    return batch;
  }

  template <class Arguments, class Direction>
  void launch(Backend& backend, Arguments& arguments, const Steps& steps, void* workspace,
              const Direction& direction) const {
    const int together = plan_.problem.directions;
    for (Index d = 0; d < directions_; d += together) {
      arguments.batch.first_is_reverse = steps.reverse(d);
      for (int i = 0; i < together; ++i) arguments.direction[i] = direction(d + i);
      backend.run_blocks(plan_, arguments, workspace);
    }
  }

  // A direction's own rows of a sequence in step order, of a sequence of the caller's, and of a state (D, B, H).
  template <class Item>
  static persistent::Sequence<Item> in_order(Item* data, Index rows, Index width) {
    return {data, rows * width, width};
  }
  template <class Item>
  static persistent::Sequence<Item> of_caller(const SequenceOf<Item>& all, Index d, Index hidden) {
    return {all.data ? all.data + d * hidden : nullptr, all.time, all.row};
  }
  template <class Item>
  static StateRows<Item> state(Item* all, Index d, const Steps& steps, Index hidden) {
    return {all ? all + d * steps.rows * hidden : nullptr, hidden};
  }

  auto forward_direction(const StepArrays<T>& a, const T* weight_hh, Index d, Index begin) const {
    const Index slots = traits_.slots, rows = a.steps.rows;
    persistent::ForwardDirection<T> own = {};
    own.weight_hh = weight_hh + d * traits_.gates * a.hidden * a.hidden;
    own.bias = a.bias + d * slots * a.hidden;
    own.gates = in_order(a.gates + a.gate_at(d, begin, 0, slots, 0), rows, slots * a.hidden);
    if (a.cells) own.cells = in_order(a.cells + a.cell_at(d, begin, 0, 0), rows, a.hidden);
    own.y = of_caller(a.y, d, a.hidden);
    own.h0 = state(static_cast<const T*>(a.h_out), d, a.steps, a.hidden);
    own.hn = state(a.h_out, d, a.steps, a.hidden);
    own.c0 = state(static_cast<const A*>(a.c), d, a.steps, a.hidden);
    own.cn = state(a.c, d, a.steps, a.hidden);
    return own;
  }

  auto backward_direction(const BackwardArrays<T>& a, const T* weight_hh, Index d) const {
    const Index slots = traits_.slots, rows = a.steps.rows, kept = a.kept_row(d, a.first, 0);
    persistent::BackwardDirection<T> own = {};
    own.weight_hh = weight_hh + d * traits_.gates * a.hidden * a.hidden;
    own.gates = in_order(a.gates + kept * slots * a.hidden, rows, slots * a.hidden);
    if (traits_.states == 2) {
      own.cells = in_order(a.cells + kept * a.hidden, rows, a.hidden);
      own.c0 = {a.c_before(d, a.first), a.hidden};
      own.dc = state(a.dc, d, a.steps, a.hidden);
    }
    own.h_previous = in_order(a.h_previous + a.row(d, a.first, 0) * a.hidden, rows, a.hidden);
    own.dy = of_caller(a.dy, d, a.hidden);
    own.dgates = in_order(a.dgates + a.row(d, a.first, 0) * slots * a.hidden, rows, slots * a.hidden);
    own.dh = state(a.dh, d, a.steps, a.hidden);
    return own;
  }
};

}  // namespace
}  // namespace fusedrnn
