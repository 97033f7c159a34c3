// Additive attention: array -> view -> check -> allocate -> release the GIL -> call.
#include <pybind11/stl.h>

#include <memory>

#include "bindings/interrupt.h"
#include "bindings/numpy/parameters.h"
#include "bindings/register.h"
#include "cpu/isa.h"
#include "cpu/layers/schedule.h"
#include "ops/additive_attention/run.h"
#include "ops/linear/plan.h"

namespace fusedrnn {
namespace {

// A call's checked arrays.
struct AttentionInputs {
  py::array query, memory, weight_query, weight_memory, bias, weight_score;
  std::vector<std::int64_t> lengths;
  Index steps, rows, locations, query_size, features, size;
};

AttentionInputs inputs_of(py::handle query, py::handle memory, py::handle weight_query, py::handle weight_memory,
                          py::handle bias, py::handle weight_score, py::handle lengths) {
  AttentionInputs in;
  in.query = require_floats(query, "query");
  const py::dtype dtype = in.query.dtype();
  require_shape(in.query, "query", {"T", "B", "H"});
  require_contiguous(in.query, "query");
  in.steps = in.query.shape(0), in.rows = in.query.shape(1), in.query_size = in.query.shape(2);
  if (in.query_size < 1) wrong_shape("query", "(T, B, H) with H at least 1", in.query);
  in.memory = require_array(memory, "memory", dtype, Use::input);
  require_shape(in.memory, "memory", {"S", in.rows, "M"});
  require_unit_stride(in.memory, "memory");
  in.locations = in.memory.shape(0), in.features = in.memory.shape(2);
  if (in.features < 1) wrong_shape("memory", "(S, B, M) with M at least 1", in.memory);
  const auto weight = [&](py::handle object, const char* name, const Shape& shape) {
    const py::array array = require_array(object, name, dtype, Use::input);
    require_shape(array, name, shape);
    require_contiguous(array, name);
    return array;
  };
  in.weight_query = weight(weight_query, "weight_query", {"A", in.query_size});
  in.size = in.weight_query.shape(0);
  if (in.size < 1) wrong_shape("weight_query", "(A, H) with A at least 1", in.weight_query);
  in.weight_memory = weight(weight_memory, "weight_memory", {in.size, in.features});
  in.bias = weight(bias, "bias", {in.size});
  in.weight_score = weight(weight_score, "weight_score", {in.size});
  in.lengths = lengths_of(lengths, "memory_lengths", in.rows, in.locations);
  if (lengths.is_none()) in.lengths.assign(static_cast<std::size_t>(in.rows), in.locations);
  return in;
}

template <class Real>
AttentionArrays<const Real> weights_of(const AttentionInputs& in) {
  return {data_of<Real>(in.weight_query), data_of<Real>(in.weight_memory), data_of<Real>(in.bias),
          data_of<Real>(in.weight_score)};
}

template <class Real>
AttentionSizes<Real> sizes_of(const AttentionInputs& in) {
  AttentionSizes<Real> sizes = {in.query_size, in.features, in.size, in.locations, in.rows, {}, {}};
  sizes.memory = {data_of<Real>(in.memory), stride_of(in.memory, 0), stride_of(in.memory, 1)};
  sizes.count(in.lengths.data());
  return sizes;
}

struct AttentionTape {
  AttentionInputs in;
  py::array attention;                                                                   // (T, B, S)
  std::variant<std::monostate, ProjectedMemory<float>, ProjectedMemory<double>> memory;  // the keys

  std::size_t bytes() const {
    std::size_t bytes = static_cast<std::size_t>(attention.nbytes());
    if (const auto* f32 = std::get_if<ProjectedMemory<float>>(&memory)) bytes += f32->key_bytes();
    if (const auto* f64 = std::get_if<ProjectedMemory<double>>(&memory)) bytes += f64->key_bytes();
    return bytes;
  }
};

// What both passes begin with; `lists` and `sizes` are to last as long.
template <class Real>
AdditiveAttentionArguments<Real> arguments_of(const AttentionInputs& in, const RowLists& lists,
                                              const AttentionSizes<Real>& sizes, const ProjectedMemory<Real>& memory,
                                              const py::array& attention) {
  AdditiveAttentionArguments<Real> a = {};
  a.memory = memory.view(sizes);
  a.weight_score = memory.weight_score();
  a.query_size = in.query_size;
  a.weight_query = data_of<Real>(in.weight_query);
  a.schedule = lists.schedule(false);
  a.last_step = a.schedule.steps;
  a.queries = {data_of<Real>(in.query), in.rows * in.query_size, in.query_size};
  a.attention = {const_cast<Real*>(data_of<Real>(attention)), in.rows * in.locations, in.locations};
  a.locations = in.locations;
  return a;
}

template <class Real>
struct Workspace {
  Buffer query, scores;
  explicit Workspace(AdditiveAttentionArguments<Real>& a)
      : query(static_cast<std::size_t>(2 * a.schedule.rows * a.memory.width()) * sizeof(Real)),
        scores(static_cast<std::size_t>(a.schedule.rows * padded(a.locations)) * sizeof(Real)) {
    a.query = query.template as<Real>();
    a.scores = scores.template as<Real>();
  }
};

template <class Real>
void forward_as(AttentionTape& tape, py::array& context) {
  const AttentionInputs& in = tape.in;
  const AttentionSizes<Real> sizes = sizes_of<Real>(in);
  const RowLists lists(in.steps, in.rows, nullptr, Flags{}, Flags{});
  const AttentionArrays<const Real> weights = weights_of<Real>(in);
  ProjectedMemory<Real>& memory = tape.memory.template emplace<ProjectedMemory<Real>>(sizes);
  Real* const to = mutable_data_of<Real>(context);
  run_without_gil([&](const Interrupt& interrupt) {
    if (!memory.project(sizes, weights, interrupt)) return false;
    AdditiveAttentionArguments<Real> a = arguments_of(in, lists, sizes, memory, tape.attention);
    a.context = {to, in.rows * in.features, in.features};
    PackedQuery<Real> query;
    query.pack(a, false);
    const Workspace<Real> workspace(a);
    const bool finished = run_attention(a, false, interrupt);
    memory.drop_values();
    return finished;
  });
}

// (context, attention), in training with a tape.
py::tuple forward(py::handle query, py::handle memory, py::handle weight_query, py::handle weight_memory,
                  py::handle bias, py::handle weight_score, py::handle lengths, bool training) {
  auto tape = std::make_unique<AttentionTape>();
  tape->in = inputs_of(query, memory, weight_query, weight_memory, bias, weight_score, lengths);
  const AttentionInputs& in = tape->in;
  const py::dtype dtype = in.query.dtype();
  py::array context = new_array(dtype, {in.steps, in.rows, in.features});
  tape->attention = new_array(dtype, {in.steps, in.rows, in.locations});
  dtype.itemsize() == 4 ? forward_as<float>(*tape, context) : forward_as<double>(*tape, context);
  py::array attention = tape->attention;
  if (training) attention.attr("setflags")(py::arg("write") = false);
  return py::make_tuple(context, attention, training ? py::cast(std::move(tape)) : py::none());
}

// dquery and dweight_query, from the gradients of the projected queries.
template <class Real>
bool differentiate_query(const AttentionInputs& in, const Real* dqueries, const Real* weight, Real* dquery,
                         Real* dweight, const Interrupt& interrupt) {
  LinearArguments<Real> a = {};
  a.rows = in.steps * in.rows;
  a.in_features = in.query_size;
  a.out_features = padded(in.size);
  a.x = data_of<Real>(in.query);
  a.weight = weight;
  a.dy = dqueries;
  a.dx = dquery;
  a.dweight = dweight;
  return run_linear_backward(a, operations<Real>().linear, interrupt);
}

template <class Real>
std::vector<Real> zeros(Index count) {
  return std::vector<Real>(static_cast<std::size_t>(count), Real(0));
}

template <class Real>
py::tuple backward_as(const AttentionTape& tape, const Real* dcontext, const Real* dattention) {
  const AttentionInputs& in = tape.in;
  const py::dtype dtype = in.query.dtype();
  const AttentionSizes<Real> sizes = sizes_of<Real>(in);
  const RowLists lists(in.steps, in.rows, nullptr, Flags{}, Flags{});
  const AttentionArrays<const Real> weights = weights_of<Real>(in);
  py::array dquery = new_array(dtype, {in.steps, in.rows, in.query_size});
  py::array dmemory = new_array(dtype, {in.locations, in.rows, in.features});
  py::array dweight_query = new_gradient(dtype, {in.size, in.query_size}, false);
  py::array dweight_memory = new_array(dtype, {in.size, in.features});
  py::array dbias = new_array(dtype, {in.size}), dweight_score = new_array(dtype, {in.size});
  const Index width = padded(in.size), rows = in.steps * in.rows;
  const AttentionArrays<Real> gradients = {mutable_data_of<Real>(dweight_query), mutable_data_of<Real>(dweight_memory),
                                           mutable_data_of<Real>(dbias), mutable_data_of<Real>(dweight_score)};
  Real *const to_query = mutable_data_of<Real>(dquery), *const to_memory = mutable_data_of<Real>(dmemory);
  run_without_gil([&](const Interrupt& interrupt) {
    ProjectedMemory<Real> memory = std::get<ProjectedMemory<Real>>(tape.memory).lent_keys();
    if (!memory.stage(sizes, weights, interrupt)) return false;
    AdditiveAttentionArguments<Real> a = arguments_of(in, lists, sizes, memory, tape.attention);
    const Sequence<const Real> none;
    a.dcontext = dcontext ? Sequence<const Real>{dcontext, in.rows * in.features, in.features} : none;
    a.dattention = dattention ? Sequence<const Real>{dattention, in.rows * in.locations, in.locations} : none;
    std::vector<Real> dqueries = zeros<Real>(rows * width), dkeys = zeros<Real>(sizes.total() * width);
    std::vector<Real> dscore = zeros<Real>(in.rows * width), dvalues = zeros<Real>(sizes.total() * in.features);
    a.dqueries = {dqueries.data(), in.rows * width, width};
    a.dkeys = dkeys.data();
    a.dscore = dscore.data();
    PackedQuery<Real> query;
    query.pack(a, false);
    const Workspace<Real> workspace(a);
    if (!run_attention(a, true, interrupt)) return false;
    add_up_scores<Real>(dscore.data(), in.rows, in.size, false, gradients.weight_score);
    std::vector<Real> weight = zeros<Real>(width * in.query_size), dweight = weight;
    std::copy_n(weights.weight_query, in.size * in.query_size, weight.data());
    if (rows > 0 && !differentiate_query(in, dqueries.data(), weight.data(), to_query, dweight.data(), interrupt))
      return false;
    std::copy_n(dweight.data(), in.size * in.query_size, gradients.weight_query);
    if (!memory.differentiate(sizes, weights, dkeys.data(), gradients, false, dvalues.data(), interrupt)) return false;
    a.part = AdditiveAttentionArguments<Real>::Part::memory;
    a.dvalues = dvalues.data();
    a.dmemory = {to_memory, in.rows * in.features, in.features};
    return run_attention(a, true, interrupt);
  });
  return py::make_tuple(dquery, dmemory, dweight_query, dweight_memory, dbias, dweight_score);
}

py::tuple backward(const AttentionTape& tape, py::handle dcontext, py::handle dattention) {
  const AttentionInputs& in = tape.in;
  const py::dtype dtype = in.query.dtype();
  const auto gradient = [&](py::handle object, const char* name, Index last) {
    if (object.is_none()) return py::array();
    const py::array array = require_array(object, name, dtype, Use::input);
    require_shape(array, name, {in.steps, in.rows, last});
    require_contiguous(array, name);
    return array;
  };
  const py::array of_context = gradient(dcontext, "dcontext", in.features);
  const py::array of_attention = gradient(dattention, "dattention", in.locations);
  const void* const context = dcontext.is_none() ? nullptr : of_context.data();
  const void* const attention = dattention.is_none() ? nullptr : of_attention.data();
  if (dtype.itemsize() == 4)
    return backward_as<float>(tape, static_cast<const float*>(context), static_cast<const float*>(attention));
  return backward_as<double>(tape, static_cast<const double*>(context), static_cast<const double*>(attention));
}

}  // namespace

void register_additive_attention(py::module_& operation) {
  operation.attr("Tape") =
      py::class_<AttentionTape>(operation, "AttentionTape",
                                "What the backward pass needs; it refers to the query, the memory and the weights.")
          .def_property_readonly("nbytes", &AttentionTape::bytes)
          .def_property_readonly("attention", [](const AttentionTape& tape) { return tape.attention; })
          .def_static("__new__", &only_from_forward);
  operation.def("forward", &forward);
  operation.def("backward", &backward);
}

}  // namespace fusedrnn
