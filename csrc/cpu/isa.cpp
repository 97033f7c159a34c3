#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "cpu/platform/processor.h"

namespace fusedrnn {

// Every instruction set that CMakeLists.txt builds the engine for, best first: APPLY(its name there, level, whether the
// processor has it); and every one that it builds the kernels of 16 bits for: APPLY(its name there, level, extensions
// beyond it, whether the processor has both, whether they are the fastest there); likewise of int8.cpp.
#if defined(FUSEDRNN_X86)
#define FUSEDRNN_FOR_EACH_ISA(APPLY)                           \
  APPLY(v4, "x86-64-v4", x86_level(processor_features()) >= 4) \
  APPLY(v3, "x86-64-v3", x86_level(processor_features()) >= 3) \
  APPLY(v2, "x86-64-v2", x86_level(processor_features()) >= 2)
#define FUSEDRNN_FOR_EACH_PAIR_ISA(APPLY)                                                       \
  APPLY(v4_amx, "x86-64-v4", "+amx", has_tiles(), false)                                        \
  APPLY(v4_avx512bf16, "x86-64-v4", "+avx512bf16", multiplies_pairs(), multiplies_pairs_fast()) \
  APPLY(v4, "x86-64-v4", "", x86_level(processor_features()) >= 4, true)                        \
  APPLY(v3, "x86-64-v3", "", x86_level(processor_features()) >= 3, true)                        \
  APPLY(v2, "x86-64-v2", "", x86_level(processor_features()) >= 2, true)
#define FUSEDRNN_FOR_EACH_INT8_ISA(APPLY)                                                       \
  APPLY(v4_avx512vnni, "x86-64-v4", "+avx512vnni", has_avx512_vnni(processor_features()), true) \
  APPLY(v4, "x86-64-v4", "", x86_level(processor_features()) >= 4, true)                        \
  APPLY(v3, "x86-64-v3", "", x86_level(processor_features()) >= 3, true)                        \
  APPLY(v2, "x86-64-v2", "", x86_level(processor_features()) >= 2, true)
#else
#define FUSEDRNN_FOR_EACH_ISA(APPLY) APPLY(generic, "generic", true)
#define FUSEDRNN_FOR_EACH_INT8_ISA(APPLY) APPLY(generic, "generic", "", true, true)
#define FUSEDRNN_FOR_EACH_PAIR_ISA(APPLY) APPLY(generic, "generic", "", true, true)
#endif

#define FUSEDRNN_DECLARE(isa, level, runs)             \
  const Kernels<float>& kernels_##isa##_float();       \
  const Kernels<double>& kernels_##isa##_double();     \
  const Operations<float>& operations_##isa##_float(); \
  const Operations<double>& operations_##isa##_double();
FUSEDRNN_FOR_EACH_ISA(FUSEDRNN_DECLARE)
#define FUSEDRNN_DECLARE_PAIRS(isa, level, extensions, runs, fastest) \
  const Kernels<Bfloat16>& kernels_##isa##_Bfloat16();
FUSEDRNN_FOR_EACH_PAIR_ISA(FUSEDRNN_DECLARE_PAIRS)
#define FUSEDRNN_DECLARE_INT8(isa, level, extensions, runs, fastest) const Int8Kernels& kernels_##isa##_int8();
FUSEDRNN_FOR_EACH_INT8_ISA(FUSEDRNN_DECLARE_INT8)

namespace {

struct Build {
  std::string name;
  bool runs;
  const Kernels<float>& (*f32)();
  const Kernels<double>& (*f64)();
  const Operations<float>& (*operations_f32)();
  const Operations<double>& (*operations_f64)();
};
// Of kernels that have extensions.
template <class Table>
struct ExtendedBuild {
  std::string level, name;  // the level, and that with each extension after a +
  bool runs, fastest;
  const Table& (*kernels)();
};
using PairBuild = ExtendedBuild<Kernels<Bfloat16>>;
using Int8Build = ExtendedBuild<Int8Kernels>;

#define FUSEDRNN_BUILD(isa, level, runs) \
  {level, runs, kernels_##isa##_float, kernels_##isa##_double, operations_##isa##_float, operations_##isa##_double},
const std::vector<Build>& builds() {
  static const std::vector<Build> all = {FUSEDRNN_FOR_EACH_ISA(FUSEDRNN_BUILD)};
  return all;
}
#define FUSEDRNN_PAIR_BUILD(isa, level, extensions, runs, fastest) \
  {level, level extensions, runs, fastest, kernels_##isa##_Bfloat16},
const std::vector<PairBuild>& pair_builds() {
  static const std::vector<PairBuild> all = {FUSEDRNN_FOR_EACH_PAIR_ISA(FUSEDRNN_PAIR_BUILD)};
  return all;
}

#define FUSEDRNN_INT8_BUILD(isa, level, extensions, runs, fastest) \
  {level, level extensions, runs, fastest, kernels_##isa##_int8},
const std::vector<Int8Build>& int8_builds() {
  static const std::vector<Int8Build> all = {FUSEDRNN_FOR_EACH_INT8_ISA(FUSEDRNN_INT8_BUILD)};
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

const Build& find(const std::string& name) {
  for (const Build& build : builds())
    if (build.name == name && build.runs) return build;
  throw std::invalid_argument("isa must be one that this build has and this processor runs (" +
                              joined(runnable_isas()) + "), not '" + name + "'");
}

template <class AnyBuild>
std::vector<std::string> names_of(const std::vector<AnyBuild>& builds) {
  std::vector<std::string> names;
  for (const AnyBuild& build : builds)
    if (build.runs) names.push_back(build.name);
  return names;
}
template <class AnyBuild>
const AnyBuild* named(const std::vector<AnyBuild>& builds, const std::string& name) {
  for (const AnyBuild& build : builds)
    if (build.name == name && build.runs) return &build;
  return nullptr;
}

// All that FUSEDRNN_ISA may ask for.
std::vector<std::string> offered() {
  std::vector<std::string> names = runnable_pair_isas();
  for (const std::string& name : runnable_int8_isas())
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  return names;
}

// What FUSEDRNN_ISA asks for; empty: the best there is.
const std::string& asked() {
  static const std::string name = [] {
    const char* value = std::getenv("FUSEDRNN_ISA");
    const std::string wanted = value ? value : "";
    const std::vector<std::string> names = offered();
    if (!wanted.empty() && std::find(names.begin(), names.end(), wanted) == names.end())
      throw std::runtime_error("FUSEDRNN_ISA is '" + wanted + "': this build and processor offer " + joined(names));
    return wanted;
  }();
  return name;
}

// The build of that name, or where only other kernels have its extensions, that of its level; the fastest.
template <class AnyBuild>
const AnyBuild& choose(const std::vector<AnyBuild>& builds) {
  if (!asked().empty()) {
    const AnyBuild* build = named(builds, asked());
    return build ? *build : *named(builds, asked().substr(0, asked().find('+')));
  }
  for (const AnyBuild& build : builds)
    if (build.runs && build.fastest) return build;
  throw std::runtime_error("this processor is older than x86-64-v2, the least that fusedrnn is built for");
}

// A build, once the operating system lets this process run it.
const PairBuild& with_leave(const PairBuild& build) {
#if defined(FUSEDRNN_X86)
  if (build.kernels == kernels_v4_amx_Bfloat16 && !request_tiles())
    throw std::runtime_error("FUSEDRNN_ISA is '" + build.name +
                             "': the operating system does not let this process use AMX's tiles");
#endif
  return build;
}

const PairBuild& chosen_pairs() {
  static const PairBuild& choice = with_leave(choose(pair_builds()));
  return choice;
}
const Int8Build& chosen_int8() {
  static const Int8Build& choice = choose(int8_builds());
  return choice;
}

const Build& chosen() {
  static const Build& choice = find(chosen_pairs().level);
  return choice;
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
template <>
const Kernels<Bfloat16>& kernels() {
  static const Kernels<Bfloat16>& table = chosen_pairs().kernels();
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
template const Kernels<float>& kernels_of(const std::string&);
template const Kernels<double>& kernels_of(const std::string&);

const std::string& isa_name() { return chosen().name; }

std::vector<std::string> runnable_isas() { return names_of(builds()); }

const std::string& pair_isa_name() { return chosen_pairs().name; }
std::vector<std::string> runnable_pair_isas() { return names_of(pair_builds()); }

const Int8Kernels& int8_kernels() {
  static const Int8Kernels& table = chosen_int8().kernels();
  return table;
}
const std::string& int8_isa_name() { return chosen_int8().name; }
std::vector<std::string> runnable_int8_isas() { return names_of(int8_builds()); }

}  // namespace fusedrnn
