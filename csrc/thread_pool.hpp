// The core's own threads. A job is a range of independent items; threads take runs of items until none are left, so
// who computes what is left to chance and results must not depend on it.
//
// Workers spin for a moment after a job, because the next operator of the same step follows at once, then yield, then
// sleep. They never spin while the engine is idle.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace puna {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(first, last, thread) for runs of at most `grain` items that cover [0, items). The caller works too.
  template <class Body>
  void run(int64_t items, int64_t grain, Body&& body) {
    if (items <= 0) return;
    if (workers_.empty() || items <= grain) {
      body(int64_t{0}, items, 0);
      return;
    }
    dispatch(items, grain, [](void* context, int64_t first, int64_t last, int thread) {
      (*static_cast<std::remove_reference_t<Body>*>(context))(first, last, thread);
    }, &body);
  }

 private:
  using Call = void (*)(void* context, int64_t first, int64_t last, int thread);

  void dispatch(int64_t items, int64_t grain, Call call, void* context);
  void work(int thread);
  void take_items(int thread);
  void await_job(uint32_t seen);

  std::vector<std::thread> workers_;
  // The job; written by the caller before `generation_` moves, read by workers after it did.
  Call call_ = nullptr;
  void* context_ = nullptr;
  int64_t items_ = 0;
  int64_t grain_ = 1;
  bool stopping_ = false;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
};

}  // namespace puna
