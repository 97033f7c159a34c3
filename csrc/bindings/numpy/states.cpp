#include "bindings/numpy/states.h"

#include "bindings/sentences.h"

namespace fusedrnn {
namespace {

std::string joined_names(const CellTraits& traits) {
  return std::string(traits.state_names.name[0]) + ", " + traits.state_names.name[1];
}

}  // namespace

std::array<py::object, kMaxStates> split_state(py::handle state, const std::string& name, const CellTraits& traits) {
  static_assert(kMaxStates == 2);  // the errors speak of pairs
  if (traits.states == 1) return {py::reinterpret_borrow<py::object>(state)};
  if (!py::isinstance<py::tuple>(state) && !py::isinstance<py::list>(state))
    throw py::type_error(sentence::states(name, joined_names(traits), type_name(state)));
  const auto pair = py::reinterpret_borrow<py::sequence>(state);
  if (pair.size() != 2)
    throw py::value_error(sentence::state_count(name, joined_names(traits), std::to_string(pair.size())));
  return {pair[0], pair[1]};
}

std::string state_name(const std::string& name, const CellTraits& traits, int state) {
  return traits.states == 1 ? name : name + "[" + std::to_string(state) + "]";
}

py::object joined_state(const std::vector<py::array>& arrays) {
  if (arrays.size() == 1) return arrays[0];
  py::tuple state(arrays.size());
  for (std::size_t i = 0; i < arrays.size(); ++i) state[i] = arrays[i];
  return state;
}

}  // namespace fusedrnn
