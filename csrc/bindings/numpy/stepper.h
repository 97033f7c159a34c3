// The Python-visible stepper.
#pragma once
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "cpu/layers/stepper.h"

namespace fusedrnn {

class PyStepper {
 public:
  template <class T>
  PyStepper(const py::dtype& dtype, const RecurrentConfig& config, const CellTraits& traits,
            const std::vector<Weights<T>>& weights, Index rows, bool int8)
      : dtype_(dtype),
        itemsize_(sizeof(T)),
        inputs_(config.input_size),
        hidden_(config.hidden_size),
        rows_(rows),
        layers_(config.layers),
        traits_(traits),
        stepper_(std::make_unique<Stepper<T>>(config, weights, rows, int8)) {
    long_ = std::get<std::unique_ptr<Stepper<T>>>(stepper_)->work() > kShortStep;
  }

  py::object step(py::handle x, py::handle out);
  py::object state() const;
  void set_state(py::handle state);
  void begin_with(py::handle state);  // the state, and what a reset sets it to
  void reset(py::handle rows);

 private:
  py::dtype dtype_;
  Index itemsize_, inputs_, hidden_, rows_;
  int layers_;
  CellTraits traits_;
  bool long_;  // steps release the GIL
  std::variant<std::unique_ptr<Stepper<float>>, std::unique_ptr<Stepper<double>>, std::unique_ptr<Stepper<Bfloat16>>>
      stepper_;
  mutable std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();  // of who has stepper_ without the GIL
  mutable unsigned forks_ = forks_of_process();                                 // as mutex_ knows them
  mutable bool torn_ = false;  // a fork came in the middle of another thread's step

  void notice_fork() const;
  void require_whole() const;

  template <class Work>
  void exclusively(const Work& work) const;
  Shape rows_shape(bool batched, Index width) const;
  bool is_plain(py::handle object, Index width) const;
  void require_rows(py::handle object, const std::string& name, bool batched, Index width) const;
  py::object output_of(py::handle out, py::handle x, bool batched) const;
  std::vector<py::array> state_arrays(py::handle state) const;
  py::dtype state_dtype(int state) const { return state == 0 ? dtype_ : accumulator_of(dtype_); }
  py::array state_array(py::handle object, int state) const;
  Index row_index(py::handle item) const;
  std::vector<Index> row_indices(py::handle rows) const;
};

}  // namespace fusedrnn
