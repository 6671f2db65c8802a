#include "thread_pool.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace puna {

namespace {

constexpr int SPINS = 4000;   // some tens of microseconds
constexpr int YIELDS = 20;    // then let others have the core
constexpr int PATIENCE = 200; // spins of the caller between yields: a worker may have lost its core

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::dispatch(int64_t items, int64_t grain, Call call, void* context) {
  call_ = call;
  context_ = context;
  items_ = items;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  take_items(0);
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins % PATIENCE == PATIENCE - 1)
      std::this_thread::yield();
    else
      pause_briefly();
  }
}

void ThreadPool::take_items(int thread) {
  while (true) {
    const int64_t first = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (first >= items_) return;
    const int64_t last = first + grain_ < items_ ? first + grain_ : items_;
    call_(context_, first, last, thread);
  }
}

void ThreadPool::await_job(uint32_t seen) {
  for (int i = 0; i < SPINS; ++i) {
    if (generation_.load(std::memory_order_acquire) != seen) return;
    pause_briefly();
  }
  for (int i = 0; i < YIELDS; ++i) {
    if (generation_.load(std::memory_order_acquire) != seen) return;
    std::this_thread::yield();
  }
  generation_.wait(seen, std::memory_order_acquire);
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  while (true) {
    while (generation_.load(std::memory_order_acquire) == seen) await_job(seen);
    ++seen;
    if (stopping_) return;
    take_items(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace puna
