#include "cpu/runtime/pool.h"

#include <pthread.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <new>

#include "cpu/platform/pages.h"

namespace fusedrnn {
namespace {

constexpr std::size_t kLine = 64;

// Sizes in eighths of a power of two, so that calls of nearly one shape share buffers and little is wasted.
std::size_t size_class(std::size_t bytes) {
  std::size_t unit = kLine;
  while (unit * 16 < bytes) unit *= 2;
  return (bytes + unit - 1) / unit * unit;
}

// From so many bytes on, buffers are mappings of their own, so that all of one goes back to the system when it is
// freed: the C library may keep what is freed below others' memory. Not under AddressSanitizer, which knows its own
// heap only.
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kMappedBytes = ~std::size_t(0);
#else
constexpr std::size_t kMappedBytes = std::size_t(256) << 10;
#endif

std::size_t alignment_of(std::size_t bytes) { return bytes >= 2 * kHugePage ? kHugePage : kLine; }

void* ask_system(std::size_t bytes) {
  void* data = nullptr;
  if (bytes >= kMappedBytes)
    data = map_pages(bytes, alignment_of(bytes));
  else if (posix_memalign(&data, alignment_of(bytes), bytes) != 0)
    data = nullptr;
  if (data && alignment_of(bytes) == kHugePage) prefer_huge_pages(data, bytes);
  return data;
}

void give_to_system(void* data, std::size_t bytes) {
  if (bytes >= kMappedBytes)
    unmap_pages(data, bytes);
  else
    free(data);
}

// Idle buffers hold at most this many times what was lately in use at once. Forward and backward calls use different
// buffers, not all at the same time: at 1 a loop of both would return some to the system, and ask for them again.
constexpr std::size_t kIdleShare = 2;

// A span of takes also ends after this time, however few they are, as where single steps run. It is much longer than
// all but the largest steps of training, which would have to ask for their memory again.
std::atomic<double> longest_span{30};  // seconds

// Most bytes that were in use at once lately: in this span of takes and in the one before. A span is long enough for a
// whole step of training, which takes a few times as many buffers as it ever has in use.
class RecentPeak {
 public:
  std::size_t bytes() const { return std::max(now_.bytes, before_.bytes); }
  // A buffer was taken, and that makes so many bytes and buffers in use. Returns whether an older peak is forgotten.
  bool took(std::size_t bytes, std::size_t buffers) {
    const bool many = ++takes_ > kLeastSpan && takes_ > kSpanOfBuffers * now_.buffers;
    return seen(bytes, buffers, many);
  }
  // As `took`, where none was taken.
  bool looked(std::size_t bytes, std::size_t buffers) { return seen(bytes, buffers, false); }

 private:
  static constexpr std::size_t kLeastSpan = 256;
  static constexpr std::size_t kSpanOfBuffers = 8;
  struct Most {
    std::size_t bytes, buffers;
  };
  Most now_ = {0, 0}, before_ = {0, 0};
  std::size_t takes_ = 0;
  double begun_ = coarse_seconds();

  bool seen(std::size_t bytes, std::size_t buffers, bool many) {
    const double now = coarse_seconds();
    const bool over = many || now - begun_ >= longest_span.load(std::memory_order_relaxed);
    if (over) {
      before_ = now_;
      now_ = {0, 0};
      takes_ = 0;
      begun_ = now;
    }
    now_.bytes = std::max(now_.bytes, bytes);
    now_.buffers = std::max(now_.buffers, buffers);
    return over;
  }
};

// The idle buffers of one size, the one given last at the end.
struct Idle {
  void* data;
  std::size_t given;  // how many buffers had been given before
};
using IdleBuffers = std::deque<Idle>;

struct Pool {
  std::mutex mutex;
  PoolUse use = {0, 0, 0};

  void* take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto found = idle_buffers_.find(bytes);
      if (found != idle_buffers_.end() && !found->second.empty()) {
        void* const data = found->second.back().data;
        found->second.pop_back();
        use.idle -= bytes;
        took(bytes);
        return data;
      }
    }
    void* const data = fresh(bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    ++use.fresh;
    took(bytes);
    return data;
  }

  void give(void* data, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    use.live -= bytes;
    --live_buffers_;
    try {
      idle_buffers_[bytes].push_back({data, given_++});
    } catch (const std::bad_alloc&) {  // no room to remember it; destructors call this
      return give_to_system(data, bytes);
    }
    use.idle += bytes;
    trim(kIdleShare * peak_.bytes());
  }

  void look() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (peak_.looked(use.live, live_buffers_)) trim(kIdleShare * peak_.bytes());
  }

  // Returns how many bytes went back.
  std::size_t release() {
    const std::lock_guard<std::mutex> lock(mutex);
    const std::size_t before = use.idle;
    trim(0);
    peak_ = RecentPeak();
    peak_.took(use.live, live_buffers_);
    return before;
  }

 private:
  using Sizes = std::map<std::size_t, IdleBuffers>;  // by their bytes
  Sizes idle_buffers_;
  std::size_t live_buffers_ = 0, given_ = 0;
  RecentPeak peak_;

  void took(std::size_t bytes) {
    use.live += bytes;
    ++live_buffers_;
    if (peak_.took(use.live, live_buffers_)) trim(kIdleShare * peak_.bytes());
  }

  // What has lain idle longest goes first: a loop takes what was given last.
  void trim(std::size_t limit) {
    while (use.idle > limit) {
      auto oldest = idle_buffers_.end();
      for (auto size = idle_buffers_.begin(); size != idle_buffers_.end(); ++size)
        if (!size->second.empty() &&
            (oldest == idle_buffers_.end() || size->second.front().given < oldest->second.front().given))
          oldest = size;
      give_to_system(oldest->second.front().data, oldest->first);
      oldest->second.pop_front();
      use.idle -= oldest->first;
    }
  }

  void* fresh(std::size_t bytes) {
    void* data = ask_system(bytes);
    if (!data) {
      release();  // the idle ones may be what stands in the way
      data = ask_system(bytes);
    }
    if (!data) throw std::bad_alloc();
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

std::size_t release_memory() {
  const std::size_t bytes = pool().release();
  trim_heap();
  return bytes;
}

void age_memory() { pool().look(); }

void set_pool_span(double seconds) { longest_span.store(seconds, std::memory_order_relaxed); }

PoolUse pool_use() {
  const std::lock_guard<std::mutex> lock(pool().mutex);
  return pool().use;
}

}  // namespace fusedrnn
