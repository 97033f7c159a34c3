// Memory that is used again: tapes, workspaces and results come from one pool, so that a training loop settles to no
// fresh pages. What has not been used for some calls, or for a minute, goes back to the system. A buffer's contents are
// whatever its last user left.
#pragma once
#include <cstddef>
#include <utility>

namespace fusedrnn {

class Buffer {
 public:
  Buffer() = default;
  // Throws std::bad_alloc. Aligned to a cache line.
  explicit Buffer(std::size_t bytes);
  // Somebody else's memory, which must outlive it.
  static Buffer view(void* data, std::size_t bytes) {
    Buffer buffer;
    buffer.data_ = data;
    buffer.bytes_ = bytes;
    buffer.owned_ = false;
    return buffer;
  }
  ~Buffer();
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <class Item>
  Item* as() const {
    return static_cast<Item*>(data_);
  }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(owned_, other.owned_);
  }
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  bool owned_ = true;
};

struct PoolUse {
  std::size_t live;   // bytes of buffers in use
  std::size_t idle;   // bytes kept for the next ones
  std::size_t fresh;  // buffers the system was asked for since the start
};
PoolUse pool_use();
// For those who work for long and take no buffers: what has not been used for a minute goes back to the system.
void age_memory();
// How long a peak of use is remembered at least, for tests; twice that at most, while anybody takes buffers or looks.
void set_pool_span(double seconds);
// Gives all idle buffers back to the system; returns their bytes.
std::size_t release_memory();

}  // namespace fusedrnn
