#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/platform/processor.h"

namespace fusedrnn {

// Every instruction set that CMakeLists.txt builds the engine for, best first: APPLY(its name there, level, extensions
// beyond the level, whether the processor has both). No build has extensions yet.
#if defined(FUSEDRNN_X86)
#define FUSEDRNN_FOR_EACH_ISA(APPLY)                               \
  APPLY(v4, "x86-64-v4", "", x86_level(processor_features()) >= 4) \
  APPLY(v3, "x86-64-v3", "", x86_level(processor_features()) >= 3) \
  APPLY(v2, "x86-64-v2", "", x86_level(processor_features()) >= 2)
#else
#define FUSEDRNN_FOR_EACH_ISA(APPLY) APPLY(generic, "generic", "", true)
#endif

#define FUSEDRNN_DECLARE(isa, level, extensions, runs) \
  const Kernels<float>& kernels_##isa##_float();       \
  const Kernels<double>& kernels_##isa##_double();     \
  const Kernels<Bfloat16>& kernels_##isa##_Bfloat16(); \
  const Operations<float>& operations_##isa##_float(); \
  const Operations<double>& operations_##isa##_double();
FUSEDRNN_FOR_EACH_ISA(FUSEDRNN_DECLARE)

namespace {

struct Build {
  std::string name;  // the level, then each extension after a +
  bool runs;
  const Kernels<float>& (*f32)();
  const Kernels<double>& (*f64)();
  const Kernels<Bfloat16>& (*bf16)();
  const Operations<float>& (*operations_f32)();
  const Operations<double>& (*operations_f64)();
};

#define FUSEDRNN_BUILD(isa, level, extensions, runs)   \
  {level extensions,         runs,                     \
   kernels_##isa##_float,    kernels_##isa##_double,   \
   kernels_##isa##_Bfloat16, operations_##isa##_float, \
   operations_##isa##_double},
const std::vector<Build>& builds() {
  static const std::vector<Build> all = {FUSEDRNN_FOR_EACH_ISA(FUSEDRNN_BUILD)};
  return all;
}

std::string runnable_list() {
  std::string list;
  for (const std::string& name : runnable_isas()) list += (list.empty() ? "" : ", ") + name;
  return list;
}

const Build& find(const std::string& name) {
  for (const Build& build : builds())
    if (build.name == name && build.runs) return build;
  throw std::invalid_argument("isa must be one that this build has and this processor runs (" + runnable_list() +
                              "), not '" + name + "'");
}

const Build& chosen() {
  static const Build* const choice = [] {
    if (const char* name = std::getenv("FUSEDRNN_ISA"); name && *name) {
      try {
        return &find(name);
      } catch (const std::invalid_argument&) {
        throw std::runtime_error("FUSEDRNN_ISA is '" + std::string(name) + "': this build and processor offer " +
                                 runnable_list());
      }
    }
    for (const Build& build : builds())
      if (build.runs) return &build;
    throw std::runtime_error("this processor is older than x86-64-v2, the least that fusedrnn is built for");
  }();
  return *choice;
}

template <class Real>
const Kernels<Real>& of(const Build& build);
template <>
const Kernels<float>& of(const Build& build) {
  return build.f32();
}
template <>
const Kernels<double>& of(const Build& build) {
  return build.f64();
}
template <>
const Kernels<Bfloat16>& of(const Build& build) {
  return build.bf16();
}
template <class Real>
const Operations<Real>& operations_of(const Build& build);
template <>
const Operations<float>& operations_of(const Build& build) {
  return build.operations_f32();
}
template <>
const Operations<double>& operations_of(const Build& build) {
  return build.operations_f64();
}

}  // namespace

template <class Real>
const Kernels<Real>& kernels() {
  static const Kernels<Real>& table = of<Real>(chosen());
  return table;
}
template <class Real>
const Kernels<Real>& kernels_of(const std::string& isa) {
  return of<Real>(find(isa));
}
template <class Real>
const Operations<Real>& operations() {
  static const Operations<Real>& table = operations_of<Real>(chosen());
  return table;
}
template const Operations<float>& operations();
template const Operations<double>& operations();
template const Kernels<float>& kernels();
template const Kernels<double>& kernels();
template const Kernels<Bfloat16>& kernels();
template const Kernels<float>& kernels_of(const std::string&);
template const Kernels<double>& kernels_of(const std::string&);

const std::string& isa_name() { return chosen().name; }

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Build& build : builds())
    if (build.runs) names.push_back(build.name);
  return names;
}

}  // namespace fusedrnn
