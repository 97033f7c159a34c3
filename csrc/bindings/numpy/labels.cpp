#include "bindings/numpy/labels.h"

namespace fusedrnn {

Integers require_integers(const py::array& array, const std::string& name, Index size) {
  if (!py::isinstance<Integers>(array)) throw py::type_error(name + " must be an array of int64");
  require_shape(array, name, {size < 0 ? Extent("N") : Extent(size)});
  require_contiguous(array, name);
  return array;
}

Index require_blank(Index blank, Index classes) {
  if (blank < 0 || blank >= classes)
    throw py::value_error("blank must lie in [0, " + std::to_string(classes) + "), not " + std::to_string(blank));
  return blank;
}

void require_length(std::int64_t length, std::int64_t most, const char* name) {
  if (length < 0 || length > most)
    throw py::value_error(std::string(name) + " must lie in [0, " + std::to_string(most) + "], not " +
                          std::to_string(length));
}

void require_label(std::int64_t label, Index classes, Index blank, Index row) {
  if (label < 0 || label >= classes || label == blank)
    throw py::value_error("targets must lie in [0, " + std::to_string(classes) + ") and not be the blank, " +
                          std::to_string(blank) + "; row " + std::to_string(row) + " has " + std::to_string(label));
}

}  // namespace fusedrnn
