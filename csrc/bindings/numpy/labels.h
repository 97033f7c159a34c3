// Checks that losses over label sequences share.
#pragma once
#include <string>

#include "bindings/numpy/arrays.h"

namespace fusedrnn {

using Integers = py::array_t<std::int64_t>;

// The array as one of int64, contiguous, with one axis; of any size where `size` is -1.
Integers require_integers(const py::array& array, const std::string& name, Index size);
// The class that stands for no label, in [0, classes).
Index require_blank(Index blank, Index classes);
void require_length(std::int64_t length, std::int64_t most, const char* name);
// A label of `targets`, of that row of the batch.
void require_label(std::int64_t label, Index classes, Index blank, Index row);

}  // namespace fusedrnn
