// Memory from the operating system in whole pages, and its cheapest clock. Linux and macOS do these alike.
#pragma once
#include <cstddef>

namespace fusedrnn {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

// Null where the system has none left. The memory begins at a multiple of `alignment`: kHugePage, or at most a page.
void* map_pages(std::size_t bytes, std::size_t alignment);
void unmap_pages(void* data, std::size_t bytes);
// Asks the system to back the memory by huge pages; it need not.
void prefer_huge_pages(void* data, std::size_t bytes);
// Gives what the C library holds and nobody uses back to the system, where the C library can.
void trim_heap();

// Seconds since some time in the past: a few nanoseconds to read, and good to some milliseconds.
double coarse_seconds();

}  // namespace fusedrnn
