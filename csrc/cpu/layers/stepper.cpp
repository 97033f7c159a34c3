#include "cpu/layers/stepper.h"

#include <algorithm>
#include <new>
#include <utility>

#include "cpu/isa.h"

namespace fusedrnn {
namespace {

// Steps take no buffers. So every so many of them the pool is asked to look for buffers that nobody used lately.
constexpr unsigned kStepsBetweenLooks = 64;

template <class Real>
Buffer zeros_of(Index a, Index b, Index c) {
  std::size_t bytes = sizeof(Real);
  for (const Index size : {a, b, c})
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(size), &bytes)) throw std::bad_alloc();
  Buffer buffer(bytes);
  std::fill_n(buffer.as<Real>(), bytes / sizeof(Real), Real(0));
  return buffer;
}

template <class From, class To>
void copy_rows(const StateRows<From>& from, const StateRows<To>& to, Index rows, Index width) {
  for (Index b = 0; b < rows; ++b) std::copy_n(from.at(b), width, to.at(b));
}

template <class Real>
StateRows<const Real> read_only(const StateRows<Real>& rows) {
  return {rows.data, rows.row};
}

}  // namespace

template <class Real>
Stepper<Real>::Stepper(const RecurrentConfig& config, const std::vector<Weights<Real>>& weights, Index rows)
    : traits_(fusedrnn::kernels<Real>().cells[config.cell].traits),
      rows_(rows),
      hidden_(config.hidden_size),
      work_(step_work(traits_, config, rows)),
      team_(step_cost<Real>(traits_, config, rows)) {
  const CellKernels<Real>& kernels = fusedrnn::kernels<Real>().cells[config.cell];
  step_ = kernels.step;
  h_next_ = zeros_of<Real>(config.layers, rows, hidden_);
  for (int i = 0; i < traits_.states; ++i) {
    state_[i] = zeros_of<Real>(config.layers, rows, hidden_);
    first_[i] = zeros_of<Real>(config.layers, rows, hidden_);
  }
  if (traits_.phases == 2) {
    operand_ = zeros_of<Real>(1, rows, padded(hidden_));
    kept_ = zeros_of<Real>(traits_.slots, rows, padded(hidden_));
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    StepArguments<Real> a = {};
    a.input_size = config.input_of(layer);
    a.hidden_size = hidden_;
    a.rows = rows;
    a.clip = static_cast<Real>(config.clip);
    packed_.push_back(zeros_of<Real>(1, 1, kernels.packed_step_size(a)));
    kernels.pack_step(a, weights[layer], packed_.back().template as<Real>());
    a.packed = packed_.back().template as<Real>();
    if (traits_.states == 2) {
      a.c_next = rows_of(state_[1], layer);
      a.c = read_only(a.c_next);
    }
    a.operand = operand_.as<Real>();
    a.kept = kept_.as<Real>();
    layers_.push_back(a);
  }
}

template <class Real>
void Stepper<Real>::step(StateRows<const Real> x, StateRows<Real> y, int threads) {
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    StepArguments<Real>& a = layers_[layer];
    a.x = x;
    a.h_next = rows_of(h_next_, layer);
    a.h = read_only(rows_of(state_[0], layer));
    a.reversed = !a.reversed;
    x = read_only(a.h_next);
  }
  layers_.back().y = y;
  team_.run(step_, layers_.data(), layers_.size(), threads);
  std::swap(state_[0], h_next_);
  if (++steps_ % kStepsBetweenLooks == 0) age_memory();
}

template <class Real>
void Stepper<Real>::read_state(const States<StateArray<Real>>& to) const {
  for (int i = 0; i < traits_.states; ++i)
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      copy_rows(rows_of(state_[i], layer), to[i].at(static_cast<int>(layer)), rows_, hidden_);
}

template <class Real>
void Stepper<Real>::write_state(const States<StateArray<const Real>>& from) {
  for (int i = 0; i < traits_.states; ++i)
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      copy_rows(from[i].at(static_cast<int>(layer)), rows_of(state_[i], layer), rows_, hidden_);
}

template <class Real>
void Stepper<Real>::keep_as_first() {
  for (int i = 0; i < traits_.states; ++i)
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      copy_rows(rows_of(state_[i], layer), rows_of(first_[i], layer), rows_, hidden_);
}

template <class Real>
void Stepper<Real>::reset(Index row) {
  for (int i = 0; i < traits_.states; ++i)
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      std::copy_n(rows_of(first_[i], layer).at(row), hidden_, rows_of(state_[i], layer).at(row));
}

template class Stepper<float>;
template class Stepper<double>;

}  // namespace fusedrnn
