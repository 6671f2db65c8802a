// The core's own threads. A job is a range of independent items; who computes an item is left to chance, so results
// must not depend on it.
//
// Items are split evenly in advance, and a thread that is through with its part takes over what others have not begun.
// A worker that lost its core is therefore waited for only if it holds an item, and it gives its core up to others where
// it holds none. Workers spin within a step, are parked soon after one, and are left out for a while where the
// caller is as quick without them. Knows nothing of what the items are. docs/kernels.md ("Threads") has the whole story.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "affinity.hpp"

namespace puna {

class ThreadPool {
 public:
  // `threads` includes the caller; no more than `cores` of them get items. `pin`: workers get a core each, distinct from
  // the one that the caller is on.
  ThreadPool(int threads, int cores, bool pin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Threads that get items at present, the caller included.
  int engaged() const { return engaged_ + 1; }

  // Calls body(first, last, thread) for runs of at most `grain` items that cover [0, items). The caller works too.
  template <class Body>
  void run(int64_t items, int64_t grain, Body&& body) {
    if (items <= 0) return;
    if (engaged_ == 0 || items <= grain) {
      body(int64_t{0}, items, 0);
      return;
    }
    dispatch({[](void* context, int64_t first, int64_t last, int thread) {
                (*static_cast<std::remove_reference_t<Body>*>(context))(first, last, thread);
              },
              const_cast<void*>(static_cast<const void*>(&body)), items, grain});
  }

  // While one exists jobs follow each other closely: workers are awake from its beginning and spin until its end.
  class Step {
   public:
    explicit Step(ThreadPool& pool) : pool_(pool) { pool_.begin_step(); }
    ~Step() { pool_.end_step(); }
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;

   private:
    ThreadPool& pool_;
  };

 private:
  using Clock = std::chrono::steady_clock;

  struct Job {
    void (*call)(void* context, int64_t first, int64_t last, int thread) = nullptr;
    void* context = nullptr;
    int64_t items = 0;
    int64_t grain = 1;
  };

  // A thread's part of the job. `runs` holds those that nobody has begun: first in the low half, end in the high one. A
  // run is claimed by changing the word, the owner from the front, others from the back; whoever claimed one may read
  // `job`, which stays as it is until every claimed run is done. A word that is back at an old value is as good as new.
  struct alignas(128) Part {
    std::atomic<uint64_t> runs{0};
    Job job;
    alignas(64) std::atomic<uint32_t> parked{0};
    std::atomic<int64_t> lost_ns{0};  // wall time that the worker wanted to run and did not
    int cpu = -1;                     // where it is pinned; the caller's to read and write
  };

  struct Turn;

  void dispatch(const Job& job);
  int64_t take(int owner, int thread, int64_t most = INT64_MAX);
  void take_over(int thread);
  void work(int thread);
  void wait(Part& part, Turn& turn);
  void wake(Part& part);
  void begin_step();
  void end_step();
  void weigh(Clock::time_point now);
  void move_worker(size_t worker, int cpu);
  void follow_caller();
  bool leave_core();

  std::unique_ptr<Part[]> parts_;  // the caller's first
  std::vector<std::thread> workers_;
  int most_ = 0;       // workers that may get items
  int engaged_ = 0;    // those that do at present
  int free_cpu_ = -1;  // the one that no worker is pinned to, where all are
  // Of the jobs since `window_`: how long they took, and how long they would have taken the caller alone, in ticks.
  Clock::time_point window_{};
  double together_ = 0;
  double alone_ = 0;
  Clock::time_point try_again_{};
  std::chrono::milliseconds left_out_{0};
  // Of the steps since `window_`.
  CpuMeter meter_;
  int64_t lost_ns_ = 0;
  int64_t in_steps_ns_ = 0;
  std::exception_ptr failure_;
  std::atomic_flag failing_ = ATOMIC_FLAG_INIT;
  alignas(128) std::atomic<int64_t> done_{0};  // runs that workers did
  alignas(128) std::atomic<bool> in_step_{false};
  std::atomic<bool> stopping_{false};
};

}  // namespace puna
