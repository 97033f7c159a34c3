// What errors say of arrays and parameters, once for C++ and for Python: `_core.sentences` has the same texts, for
// str.format, where the CUDA engine's checks take them from.
#pragma once
#include <initializer_list>
#include <string>

// X(name, text). A brace pair stands for what the check fills in: mostly the argument's name, what was wanted, what
// came. `remedy` is what the caller can do, beginning with a semicolon, or nothing.
#define FUSEDRNN_FOR_EACH_SENTENCE(X)                                                                       \
  X(dtype, "{} must be an array of {}, not of {}{}") /* name, wanted, came, remedy */                       \
  X(shape, "{} must have shape {}, not {}")                                                                 \
  X(contiguous, "{} must be C-contiguous; pass {}")                                                         \
  X(unit_stride,                                                                                            \
    "{} must have elements next to each other along its last axis (a stride of {} bytes), not a stride of " \
    "{}; pass {}")                                                                                          \
  X(whole_strides, "{} must have strides of whole elements; pass {}")                                       \
  X(writable, "{} must be writable")                                                                        \
  X(overlapping, "{} must not have elements that share memory")                                             \
  X(shared, "{} must not share memory with {}")                                                             \
  X(missing, "{} is missing")                                                                               \
  X(unknown, "{}[{}] is not a parameter of this object")                                                    \
  X(keys, "{} must have strings as keys, not {}")                                                           \
  X(states, "{} must be a pair ({}) of arrays, not {}")                                                     \
  X(state_count, "{} must be a pair ({}), not of length {}")                                                \
  X(unbatched_lengths, "lengths must be None for an unbatched x")                                           \
  X(lengths, "{} must be an array of integers, not {}")                                                     \
  X(foreign_tape, "tape must come from this object's own forward")                                          \
  X(gradients, "grads.parameters must be a dict, not {}")

namespace fusedrnn {

// The text with its brace pairs filled in, one after the other.
std::string filled(const char* text, std::initializer_list<std::string> parts);

// sentence::shape("x", "(2, 3)", "(3,)"), for one.
namespace sentence {
#define FUSEDRNN_SENTENCE(name, text)       \
  template <class... Parts>                 \
  std::string name(const Parts&... parts) { \
    return filled(text, {parts...});        \
  }
FUSEDRNN_FOR_EACH_SENTENCE(FUSEDRNN_SENTENCE)
#undef FUSEDRNN_SENTENCE
}  // namespace sentence

}  // namespace fusedrnn
