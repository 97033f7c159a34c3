#include "cpu/layers/stepper.h"

#include <algorithm>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu/isa.h"

namespace fusedrnn {
namespace {

// Steps take no buffers. So every so many of them the pool is asked to look for buffers that nobody used lately.
constexpr unsigned kStepsBetweenLooks = 64;

template <class T>
Buffer zeros_of(Index a, Index b, Index c) {
  std::size_t bytes = sizeof(T);
  for (const Index size : {a, b, c})
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(size), &bytes)) throw std::bad_alloc();
  Buffer buffer(bytes);
  std::fill_n(buffer.as<T>(), bytes / sizeof(T), T{});
  return buffer;
}

template <class From, class To>
void copy_rows(const StateRows<From>& from, const StateRows<To>& to, Index rows, Index width) {
  for (Index b = 0; b < rows; ++b) std::copy_n(from.at(b), width, to.at(b));
}

template <class T>
StateRows<const T> read_only(const StateRows<T>& rows) {
  return {rows.data, rows.row};
}

}  // namespace

template <class T>
Stepper<T>::Stepper(const RecurrentConfig& config, const std::vector<Weights<T>>& weights, Index rows, bool int8)
    : traits_(fusedrnn::kernels<T>().cells[config.cell].traits),
      rows_(rows),
      hidden_(config.hidden_size),
      work_(step_work(traits_, config, rows)),
      team_(int8 ? int8_step_cost(step_cost<T>(traits_, config, rows)) : step_cost<T>(traits_, config, rows)) {
  using A = Accumulator<T>;
  step_ = fusedrnn::kernels<T>().cells[config.cell].step;
  ForwardCall<T> packed;
  if constexpr (sizeof(T) == 2) {
    step_ = fusedrnn::kernels<T>().cells[config.cell].panel_step;
    net_.emplace(config, weights, 1);
    net_->use_in(packed);
  }
  if constexpr (std::is_same_v<T, float>)
    if (int8)
      int8_.reset(new Int8{Int8Net(config, weights), int8_kernels().cells[config.cell].step,
                           std::vector<Int8Workspace>(static_cast<std::size_t>(config.layers))});
  h_next_ = zeros_of<T>(config.layers, rows, hidden_);
  each_state([&](int i, auto item) {
    state_[i] = zeros_of<decltype(item)>(config.layers, rows, hidden_);
    first_[i] = zeros_of<decltype(item)>(config.layers, rows, hidden_);
  });
  if (traits_.phases == 2) {
    operand_ = zeros_of<T>(1, rows, padded(hidden_));
    kept_ = zeros_of<A>(traits_.slots, rows, padded(hidden_));
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    StepArguments<T> a = {};
    a.input_size = config.input_of(layer);
    a.hidden_size = hidden_;
    a.rows = rows;
    a.clip = static_cast<A>(config.clip);
    if constexpr (sizeof(T) == 2)
      a.panels = packed.packed[layer];
    else if (!int8_)
      pack(config, weights[layer], a);
    if (traits_.states == 2) {
      a.c_next = rows_of<A>(state_[1], layer);
      a.c = read_only(a.c_next);
    }
    a.operand = operand_.as<T>();
    a.kept = kept_.as<A>();
    layers_.push_back(a);
  }
}

template <class T>
void Stepper<T>::pack(const RecurrentConfig& config, const Weights<T>& weights, StepArguments<T>& a) {
  const CellKernels<T>& kernels = fusedrnn::kernels<T>().cells[config.cell];
  packed_.push_back(zeros_of<Accumulator<T>>(1, 1, kernels.packed_step_size(a)));
  a.packed = packed_.back().template as<Accumulator<T>>();
  kernels.pack_step(a, weights, packed_.back().template as<Accumulator<T>>());
}

template <class T>
void Stepper<T>::run_int8(int threads) {
  if constexpr (std::is_same_v<T, float>) {
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      if (int8_->workspace[layer].threads() < threads)
        int8_->workspace[layer].allocate({traits_, layers_[layer].input_size, hidden_}, rows_, rows_, threads);
    team_.run(layers_.size(), threads, [&](std::size_t layer, Worker& worker) {
      const unsigned char* const packed = int8_->net.direction(static_cast<int>(layer));
      int8_->step(layers_[layer], int8_->workspace[layer].direction(packed), worker);
    });
  } else {
    (void)threads;
  }
}

template <class T>
void Stepper<T>::step(StateRows<const T> x, StateRows<T> y, int threads) {
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    StepArguments<T>& a = layers_[layer];
    a.x = x;
    a.h_next = rows_of<T>(h_next_, layer);
    a.h = read_only(rows_of<T>(state_[0], layer));
    a.reversed = !a.reversed;
    x = read_only(a.h_next);
  }
  layers_.back().y = y;
  if (int8_)
    run_int8(threads);
  else
    team_.run(layers_.size(), threads, [&](std::size_t layer, Worker& worker) { step_(layers_[layer], worker); });
  std::swap(state_[0], h_next_);
  if (++steps_ % kStepsBetweenLooks == 0) age_memory();
}

template <class T>
void Stepper<T>::read_state(const States<StateArray<void>>& to) const {
  each_state([&](int i, auto item) {
    using Item = decltype(item);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      copy_rows(rows_of<Item>(state_[i], layer), to[i].template at<Item>(static_cast<int>(layer)), rows_, hidden_);
  });
}

template <class T>
void Stepper<T>::write_state(const States<StateArray<const void>>& from) {
  each_state([&](int i, auto item) {
    using Item = decltype(item);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      copy_rows(from[i].template at<const Item>(static_cast<int>(layer)), rows_of<Item>(state_[i], layer), rows_,
                hidden_);
  });
}

template <class T>
void Stepper<T>::keep_as_first() {
  each_state([&](int i, auto item) {
    using Item = decltype(item);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      copy_rows(rows_of<Item>(state_[i], layer), rows_of<Item>(first_[i], layer), rows_, hidden_);
  });
}

template <class T>
void Stepper<T>::reset(Index row) {
  each_state([&](int i, auto item) {
    using Item = decltype(item);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      std::copy_n(rows_of<Item>(first_[i], layer).at(row), hidden_, rows_of<Item>(state_[i], layer).at(row));
  });
}

template class Stepper<float>;
template class Stepper<double>;
template class Stepper<Bfloat16>;

}  // namespace fusedrnn
