#include "core/pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace fusedrnn {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t(2) << 20;

// Sizes in eighths of a power of two, so that calls of nearly one shape share buffers and little is wasted.
std::size_t size_class(std::size_t bytes) {
  std::size_t unit = kLine;
  while (unit * 16 < bytes) unit *= 2;
  return (bytes + unit - 1) / unit * unit;
}

// Idle buffers hold at most this many times what was ever in use at once. Forward and backward calls use different
// buffers, not all at the same time: at 1 a loop of both would return some to the system, and ask for them again.
constexpr std::size_t kIdleShare = 2;

struct Pool {
  std::mutex mutex;
  std::map<std::size_t, std::vector<void*>> idle_buffers;
  PoolUse use = {0, 0, 0};
  std::size_t peak_live = 0;

  void* take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto found = idle_buffers.find(bytes);
      if (found != idle_buffers.end() && !found->second.empty()) {
        void* data = found->second.back();
        found->second.pop_back();
        use.idle -= bytes;
        add_live(bytes);
        return data;
      }
    }
    void* data = fresh(bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    ++use.fresh;
    add_live(bytes);
    return data;
  }

  void give(void* data, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    use.live -= bytes;
    try {
      idle_buffers[bytes].push_back(data);
    } catch (const std::bad_alloc&) {  // no room to remember it; destructors call this
      free(data);
      return;
    }
    use.idle += bytes;
    trim(kIdleShare * peak_live);
  }

 private:
  void add_live(std::size_t bytes) {
    use.live += bytes;
    if (use.live > peak_live) peak_live = use.live;
  }

  // Smallest sizes go last: they cost least to keep.
  void trim(std::size_t limit) {
    while (use.idle > limit) {
      auto largest = idle_buffers.end();
      do --largest;
      while (largest->second.empty());
      free(largest->second.back());
      largest->second.pop_back();
      use.idle -= largest->first;
    }
  }

  void* fresh(std::size_t bytes) {
    const bool huge = bytes >= 2 * kHugePage;
    void* data = nullptr;
    if (posix_memalign(&data, huge ? kHugePage : kLine, bytes) != 0) {
      // The idle ones may be what stands in the way.
      {
        const std::lock_guard<std::mutex> lock(mutex);
        trim(0);
      }
      if (posix_memalign(&data, huge ? kHugePage : kLine, bytes) != 0) throw std::bad_alloc();
    }
#if defined(MADV_HUGEPAGE)
    if (huge) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
  }
};

// Never destroyed: arrays on its memory may outlive every static object.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

// A fork must not copy the pool while another thread is inside it.
[[maybe_unused]] const int fork_handlers =
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });

}  // namespace

Buffer::Buffer(std::size_t bytes) : bytes_(size_class(bytes ? bytes : 1)) { data_ = pool().take(bytes_); }

Buffer::~Buffer() {
  if (data_ && owned_) pool().give(data_, bytes_);
}

PoolUse pool_use() {
  const std::lock_guard<std::mutex> lock(pool().mutex);
  return pool().use;
}

}  // namespace fusedrnn
