// Arguments of the softmax cross-entropy readout; see kernel.h beside this for the CPU, kernel.cuh for a device. The
// products of its linear map are logits, and the outputs are classes.
#pragma once
#include "ops/linear/arguments.h"

namespace fusedrnn {

// On the CPU.
template <class Real>
struct LinearCrossEntropyArguments : LinearArguments<Real> {  // without y and dy
  const std::int64_t* targets;                                // (rows,) in [0, classes), or negative: ignored
  Real* losses;                                               // forward, written: (rows,); 0 where ignored
  // (rows,) each; forward writes them, backward reads them. Their sum is log(sum of exp(logits)); it is not kept,
  // because at large logits its rounding alone would be an error of the loss.
  Real* maximum;      // of the logits
  Real* log_sum;      // log of the sum of exp(logits - maximum)
  const Real* scale;  // backward: (rows,) gradient of each row's loss
};

// On a device, whose arrays are of `type` where nothing else is said.
struct LinearCrossEntropyCall : LinearArrays<void> {
  Type type;
  bool tf32;
  const std::int64_t* targets;  // (rows,)
  std::int64_t ignore_index;
  int reduction;      // 0: mean, 1: sum, 2: none
  void* loss;         // accumulator's type: one, or (rows,) for none
  void* normalizers;  // accumulator's type, (2 * rows + 1,): maxima, logs of sums, number of targets that count
  const void* dloss;  // backward: accumulator's type, one or (rows,), with its stride
  Index dloss_row;
  void* workspace;

  // As the arrays' own.
  template <class Visit>
  void each_field(const Visit& visit) {
    LinearArrays::each_field(visit);
    visit("dtype", type);
    visit("tf32", tf32);
    visit("targets", targets);
    visit("ignore_index", ignore_index);
    visit("reduction", reduction);
    visit("loss", loss);
    visit("normalizers", normalizers);
    visit("dloss", dloss);
    visit("dloss_row", dloss_row);
  }
};

}  // namespace fusedrnn
