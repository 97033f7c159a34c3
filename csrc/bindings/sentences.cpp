#include "bindings/sentences.h"

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bindings/register.h"

namespace fusedrnn {

std::string filled(const char* text, std::initializer_list<std::string> parts) {
  std::string result;
  const std::string* part = parts.begin();
  for (; *text; ++text) {
    if (text[0] != '{') {
      result += *text;
      continue;
    }
    if (part == parts.end()) throw std::logic_error("a sentence lacks a part: " + result);
    result += *part++;
    ++text;
  }
  return result;
}

void register_sentences(pybind11::module_& module) {
  pybind11::dict sentences;
#define FUSEDRNN_SENTENCE(name, text) sentences[#name] = text;
  FUSEDRNN_FOR_EACH_SENTENCE(FUSEDRNN_SENTENCE)
#undef FUSEDRNN_SENTENCE
  module.attr("sentences") = pybind11::module_::import("types").attr("MappingProxyType")(sentences);
}

}  // namespace fusedrnn
