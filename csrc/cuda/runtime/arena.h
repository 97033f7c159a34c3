// Divides one allocation of the caller's into aligned arrays. Without memory it only counts: the same code lays out and
// measures.
#pragma once
#include <cstddef>
#include <new>

#include "common/arguments.h"

namespace fusedrnn {

class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  // An array of the product of the extents; null where that is 0 or while counting. Throws std::bad_alloc when no
  // memory could be so large.
  template <class T>
  T* take(Index a, Index b = 1, Index c = 1, Index d = 1) {
    std::size_t bytes = sizeof(T), end = 0;
    for (const Index extent : {a, b, c, d})
      if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(extent), &bytes)) throw std::bad_alloc();
    if (bytes > kMost || __builtin_add_overflow(used_, (bytes + kAlignment - 1) / kAlignment * kAlignment, &end) ||
        end > kMost)
      throw std::bad_alloc();
    T* const array = bytes > 0 && memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ = end;
    return array;
  }
  std::size_t used() const { return used_; }

  static constexpr std::size_t kAlignment = 256;

 private:
  static constexpr std::size_t kMost = std::size_t(1) << 62;
  char* memory_;
  std::size_t used_ = 0;
};

}  // namespace fusedrnn
