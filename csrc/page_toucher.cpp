#include "page_toucher.hpp"

#include <algorithm>
#include <chrono>

#include "affinity.hpp"
#include "memory.hpp"

namespace puna {

namespace {

using namespace std::chrono_literals;

constexpr auto DELAY = 500ms;
constexpr auto LOOK = 1s;            // `want` takes no lock, so its news may be missed
constexpr size_t PAGE_BYTES = 4096;  // or more; touching a page twice costs nothing

// Writes to each page what is there. Others may write to the same pages meanwhile, without atomics, which the language
// calls a race; an atomic read, or and write of one byte takes nothing of theirs back. The system's own way to do this
// (MADV_POPULATE_WRITE) would hold the lock of all mappings, which a thread that runs when idle must not.
[[gnu::noinline, gnu::no_sanitize("thread")]] void touch(uint8_t* begin, size_t bytes) {
  for (size_t i = 0; i < bytes; i += PAGE_BYTES) __atomic_fetch_or(begin + i, uint8_t{0}, __ATOMIC_RELAXED);
}

}  // namespace

PageToucher::PageToucher(uint8_t* data, size_t bytes) : data_(data), bytes_(bytes), thread_([this] { work(); }) {}

PageToucher::~PageToucher() {
  {
    const std::lock_guard lock(mutex_);
    stopping_.store(true);
  }
  news_.notify_one();
  thread_.join();
}

void PageToucher::want(size_t bytes) {
  bytes = std::min(bytes, bytes_);
  if (bytes <= wanted_.load(std::memory_order_relaxed)) return;
  wanted_.store(bytes, std::memory_order_relaxed);
  news_.notify_one();
}

void PageToucher::work() {
  run_when_idle();
  std::unique_lock lock(mutex_);
  news_.wait_for(lock, DELAY, [this] { return stopping_.load(); });
  for (size_t done = 0; !stopping_.load();) {
    const size_t end = std::min(wanted_.load(std::memory_order_relaxed), done + HUGE_PAGE_BYTES);
    if (done >= end) {
      news_.wait_for(lock, LOOK);
      continue;
    }
    lock.unlock();
    touch(data_ + done, end - done);
    lock.lock();
    done = end;
  }
}

}  // namespace puna
