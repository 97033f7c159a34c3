// Threads, instruction sets, memory pool, and the small functions that tests and benchmarks need of them.
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <string>

#include "bindings/gil.h"
#include "bindings/interrupt.h"
#include "bindings/numpy/arrays.h"
#include "bindings/register.h"
#include "cpu/isa.h"
#include "cpu/platform/processor.h"
#include "cpu/platform/system.h"
#include "cpu/runtime/contention.h"
#include "cpu/runtime/pool.h"

namespace fusedrnn {
namespace {

template <class Real>
const Kernels<Real>& chosen(const std::optional<std::string>& isa) {
  return isa ? kernels_of<Real>(*isa) : kernels<Real>();
}

template <class Real>
py::array activate_as(const std::string& name, const py::array& x, const std::optional<std::string>& isa) {
  const Kernels<Real>& table = chosen<Real>(isa);
  const auto function = name == "exp"       ? table.exp
                        : name == "sigmoid" ? table.sigmoid
                        : name == "tanh"    ? table.tanh
                                            : nullptr;
  if (!function) throw py::value_error("name must be 'exp', 'sigmoid' or 'tanh', not '" + name + "'");
  py::array y = new_array(x.dtype(), {x.shape(0)});
  const Real* const from = data_of<Real>(x);
  Real* const to = mutable_data_of<Real>(y);
  const Index count = x.shape(0);
  const GilReleased released;
  parallel(1, [&](int, int) { function(from, to, count); });
  return y;
}

py::array activate(const std::string& name, py::handle object, const std::optional<std::string>& isa) {
  const bool is_float64 = py::isinstance<py::array_t<double>>(object);
  const py::array x = require_array(object, "x", is_float64 ? py::dtype::of<double>() : py::dtype::of<float>());
  require_shape(x, "x", {"N"});
  require_contiguous(x, "x");
  return is_float64 ? activate_as<double>(name, x, isa) : activate_as<float>(name, x, isa);
}

// Runs `work(thread)` on all threads at once, `rounds` times; returns the best sum of its results per second.
template <class Work>
double best_rate(int threads, int rounds, const Work& work) {
  std::atomic<double> done{0};
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    done = 0;
    const Clock::time_point start = Clock::now();
    parallel(threads, [&](int thread, int) {
      const double own = work(thread);
      double sum = done.load();
      while (!done.compare_exchange_weak(sum, sum + own)) {
      }
    });
    best = std::max(best, done.load() / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

void require_threads(int threads) {
  if (threads < 1) throw py::value_error("threads must be at least 1, not " + std::to_string(threads));
}

template <class Real>
double peak(int threads, const std::optional<std::string>& isa) {
  const Kernels<Real>& table = chosen<Real>(isa);
  const GilReleased released;
  return best_rate(threads, 100, [&](int) { return table.multiply_adds(100000); }) / 1e9;
}

double fma_peak(int threads, const std::optional<std::string>& isa, const std::string& dtype) {
  require_threads(threads);
  if (dtype != "float32" && dtype != "float64")
    throw py::value_error("dtype must be 'float32' or 'float64', not '" + dtype + "'");
  return dtype == "float32" ? peak<float>(threads, isa) : peak<double>(threads, isa);
}

double read_bandwidth(Index bytes, int threads) {
  if (bytes < 1) throw py::value_error("bytes must be at least 1, not " + std::to_string(bytes));
  require_threads(threads);
  constexpr Index kGrain = 4096;    // bytes: a page, so that no two threads share one
  constexpr Index kRun = 64 << 20;  // bytes: long enough to hide the start of the team
  const Index slice = (bytes / threads + kGrain - 1) / kGrain * kGrain, count = slice / sizeof(float);
  const Index rounds = 2 + kRun / (slice * threads);
  const Buffer buffer(static_cast<std::size_t>(slice) * threads);  // from where the engine's weights are
  std::fill_n(buffer.as<float>(), count * threads, 0.0f);
  const Kernels<float>& table = kernels<float>();
  const GilReleased released;
  const auto read = [&](int thread) { return table.read(buffer.as<float>() + thread * count, count, rounds); };
  return best_rate(threads, 30, read) / 1e9;
}

}  // namespace

void register_machine(py::module_& module) {
  isa_name();  // a bad FUSEDRNN_ISA is an error at import
  module.attr("version") = FUSEDRNN_VERSION;
  module.def("isa", &isa_name, "Name of the instruction set in use.");
  module.def("isas", &runnable_isas, "Names of those that this build and processor offer, best first.");
  module.def("pair_isa", &pair_isa_name, "Name of the instruction set in use for bfloat16.");
  module.def("pair_isas", &runnable_pair_isas, "Names of those that this build and processor offer, best first.");
  module.def("int8_isa", &int8_isa_name, "Name of the instruction set in use with weights of 8 bits.");
  module.def("int8_isas", &runnable_int8_isas, "Names of those that this build and processor offer, best first.");
  module.def("int8_instruction", [] { return int8_kernels().instruction; }, "The instruction that multiplies them.");
  module.def(
      "x86_level",
      [](std::uint32_t leaf1_ecx, std::uint32_t leaf7_ebx, std::uint32_t extended_ecx, std::uint64_t saved_state) {
        return x86_level({leaf1_ecx, leaf7_ebx, extended_ecx, saved_state, 0});
      },
      py::arg("leaf1_ecx"), py::arg("leaf7_ebx"), py::arg("extended_ecx"), py::arg("saved_state"),
      "The level of x86-64, 1 to 4, of a processor with these registers of CPUID and this XCR0.");
  module.def("num_threads", &num_threads);
  module.def("available_threads", &available_processors);
  module.def("set_num_threads", &set_num_threads, py::arg("threads"), py::arg("oversubscribe") = false,
             py::arg("always") = false);
  module.def("teams_are_whole", &teams_are_whole,
             "Whether teams have the size asked for, as far as other processes go: for benchmarks.");
  module.def(
      "set_signal_interval",
      [](double seconds) {
        if (!(seconds >= 0 && seconds <= 1e9)) throw py::value_error("seconds must lie in [0, 1e9]");
        set_signal_interval(seconds);
      },
      py::arg("seconds"), "Least time between two looks for Python's signals during a call; for tests.");
  module.def("set_worker_process", &set_worker_process);
  module.def("pool_use", [] {
    const PoolUse use = pool_use();
    py::dict result;
    result["live"] = use.live;
    result["idle"] = use.idle;
    result["fresh"] = use.fresh;
    return result;
  });
  module.def(
      "set_pool_span",
      [](double seconds) {
        if (!(seconds >= 0)) throw py::value_error("seconds must be at least 0");
        set_pool_span(seconds);
      },
      py::arg("seconds"), "How long idle memory is kept at least, of which no more was used; for tests.");
  module.def("release_memory", &release_memory, py::call_guard<GilReleased>());
  module.def("activate", &activate, py::arg("name"), py::arg("x"), py::arg("isa") = py::none(),
             "The engine's exp, sigmoid or tanh of each element of a 1-d float32 or float64 array.");
  module.def("fma_peak", &fma_peak, py::arg("threads"), py::arg("isa") = py::none(), py::arg("dtype") = "float32",
             "Fused multiply-adds that the machine sustains, in GFLOP/s: the best of a few short runs.");
  module.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("threads"),
             "GB/s at which threads read again and again a working set of so many bytes, each its own part of it.");
}

}  // namespace fusedrnn
