// Which build of the engine runs on this processor. An instruction set is a level, one of the x86-64 psABI's or
// "generic", and extensions beyond it, which kernels of 16 bits alone have.
#pragma once
#include <string>
#include <vector>

#include "cpu/int8.h"
#include "cpu/kernels.h"
#include "cpu/operations.h"

namespace fusedrnn {

// The kernels of the chosen ISA: the best this processor has, or what FUSEDRNN_ISA asks for.
// Throws std::runtime_error where that names no ISA of this build, or one the processor lacks.
template <class Real>
const Kernels<Real>& kernels();
// The same of the operations.
template <class Real>
const Operations<Real>& operations();
// The kernels of the ISA of that name; throws std::invalid_argument where it cannot run.
template <class Real>
const Kernels<Real>& kernels_of(const std::string& isa);

const std::string& isa_name();
std::vector<std::string> runnable_isas();
// Of the kernels of 16 bits: a level and, each after a +, extensions beyond it.
const std::string& pair_isa_name();
std::vector<std::string> runnable_pair_isas();

// The same of recurrences with weights of 8 bits, which have builds of their own: FUSEDRNN_ISA may name one of them,
// and the rest is then of its level. Of another name it is that build's level, without extensions.
const Int8Kernels& int8_kernels();
const std::string& int8_isa_name();
std::vector<std::string> runnable_int8_isas();

}  // namespace fusedrnn
