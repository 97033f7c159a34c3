// A sequence of one step, without packing, or from weights packed before: cells, and layers called with T = 1.
#pragma once
#include "cpu/layers/recurrent.h"

namespace fusedrnn {

// Whether a step of so many rows is done so rather than by the sequence driver:
template <class T>
bool single_step_pays(Index rows);           // from the weights where they lie
bool packed_step_pays(Index rows);           // from packed weights
bool single_step_gradient_pays(Index rows);  // its gradients, from the weights where they lie

// Like run_forward without a tape, for a call of one step of every row: lists and interrupt are not asked.
template <class T>
void run_single_step(const RecurrentConfig& config, const ForwardCall<T>& call);

// The same of one layer in training, whose directions have one step of every row and keep its gates.
template <class T>
void train_single_step(const RecurrentConfig& config, const std::vector<ForwardArguments<T>>& directions, int threads);

}  // namespace fusedrnn
