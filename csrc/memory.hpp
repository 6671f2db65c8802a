// Large zeroed memory: mapped lazily, on huge pages where the system allows, given back at once.
//
// A Region is one mapping. What is larger than a huge page begins at the border of one, for only whole ones can be used.
// An Arena hands out pieces of a few Regions, so that many small matrices lie on huge pages too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace puna {

constexpr size_t HUGE_PAGE_BYTES = size_t{2} << 20;

class Region {
 public:
  Region() = default;
  explicit Region(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
#if defined(__linux__) || defined(__APPLE__)
    const size_t slack = bytes < HUGE_PAGE_BYTES ? 0 : HUGE_PAGE_BYTES;
    void* p = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = mapped_ = static_cast<uint8_t*>(p);
    mapped_bytes_ = bytes + slack;
    if (slack) data_ += HUGE_PAGE_BYTES - 1 - (reinterpret_cast<uintptr_t>(p) - 1) % HUGE_PAGE_BYTES;
#if defined(MADV_HUGEPAGE)
    if (slack) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
#else
    data_ = mapped_ = static_cast<uint8_t*>(std::calloc(bytes, 1));
    if (!data_) throw std::bad_alloc();
#endif
  }
  ~Region() {
    if (!mapped_) return;
#if defined(__linux__) || defined(__APPLE__)
    munmap(mapped_, mapped_bytes_);
#else
    std::free(mapped_);
#endif
  }
  Region(Region&& other) noexcept { *this = std::move(other); }
  Region& operator=(Region&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    return *this;
  }

  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  uint8_t* mapped_ = nullptr;
  size_t mapped_bytes_ = 0;
};

class Arena {
 public:
  // Zeroed, aligned to a cache line, there until the arena goes.
  uint8_t* allocate(size_t bytes) {
    constexpr size_t LINE = 64, REGION_BYTES = 16 * HUGE_PAGE_BYTES;
    const size_t rounded = (bytes + LINE - 1) / LINE * LINE;
    if (regions_.empty() || regions_.back().size() - used_ < rounded) {
      regions_.emplace_back(std::max(rounded, REGION_BYTES));
      used_ = 0;
    }
    used_ += rounded;
    return regions_.back().data() + used_ - rounded;
  }

 private:
  std::vector<Region> regions_;
  size_t used_ = 0;  // of the last region
};

}  // namespace puna
