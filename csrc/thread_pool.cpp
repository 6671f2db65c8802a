#include "thread_pool.hpp"

#include <algorithm>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace puna {

namespace {

using namespace std::chrono_literals;

constexpr int64_t PARK_IN_STEP_NS = 2'000'000;  // an idle worker sleeps after so long, within a step
constexpr int64_t PARK_NS = 150'000;            // and between steps
constexpr int64_t TURN_NS = 3'000'000;          // a worker on a crowded core gives way so often, holding no item
constexpr int64_t CROWDED_NS = 500'000;         // lost in one turn: somebody else is on this core
constexpr auto NAP = 50us;                      // long enough to be taken off the core where another wants it
constexpr int SPINS_A_LOOK = 64;                // pauses between two looks at the clock
constexpr int SPINS_PATIENT = 2048;             // pauses before the caller thinks that a worker lost its core
constexpr auto WINDOW = 40ms;                   // of jobs that are weighed together
constexpr double WORTH = 1.1;                   // workers that make the caller no quicker than this are left out
constexpr auto LEFT_OUT_LEAST = 100ms;
constexpr auto LEFT_OUT_MOST = 1600ms;
constexpr double CROWDED = 0.1;                 // share of its time that the caller may lose before it moves

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A clock for ratios: ten nanoseconds a look where the processor counts.
int64_t ticks() {
#if defined(__x86_64__)
  return static_cast<int64_t>(__rdtsc());
#else
  return CpuMeter::wall_ns();
#endif
}

constexpr uint64_t pack(uint64_t first, uint64_t end) { return first | end << 32; }
constexpr uint64_t first_of(uint64_t runs) { return runs & 0xffffffffu; }
constexpr uint64_t end_of(uint64_t runs) { return runs >> 32; }
constexpr bool none(uint64_t runs) { return first_of(runs) >= end_of(runs); }

}  // namespace

// A worker's time on its core, from one moment at which it might give way to the next.
struct ThreadPool::Turn {
  CpuMeter meter;
  int64_t begun_ns = CpuMeter::wall_ns();
  int64_t idle_ns = begun_ns;  // since when there has been nothing to do
  bool crowded = false;

  Turn() { meter.start(); }

  // The system takes a core away in the middle of an item, and all wait for that item. So where somebody else wants the
  // core it is given up between items, by a nap: that costs no claim to time, as a yield does.
  void end(std::atomic<int64_t>& lost_ns) {
    int64_t lost = meter.lost_ns();
    if (crowded) {
      std::this_thread::sleep_for(NAP);
      lost = std::max(lost, meter.lost_ns());
    }
    crowded = lost > CROWDED_NS;
    lost_ns.fetch_add(lost, std::memory_order_relaxed);
    meter.start();
    begun_ns = CpuMeter::wall_ns();
  }
};

ThreadPool::ThreadPool(int threads, int cores, bool pin_workers) : parts_(new Part[static_cast<size_t>(std::max(threads, 1))]) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  most_ = engaged_ = std::clamp(cores - 1, 0, static_cast<int>(workers_.size()));
  window_ = Clock::now();
  if (!pin_workers || workers_.empty()) return;
  const std::vector<int> cpus = allowed_cpus();
  if (cpus.size() != workers_.size() + 1) return;  // fewer: no core for each; more: the system chooses better
  const auto mine = std::find(cpus.begin(), cpus.end(), current_cpu());
  free_cpu_ = mine == cpus.end() ? cpus[0] : *mine;
  size_t worker = 1;
  for (const int cpu : cpus)
    if (cpu != free_cpu_) move_worker(worker++, cpu);
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  for (int i = 1; i < threads(); ++i) wake(parts_[static_cast<size_t>(i)]);
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::dispatch(const Job& job) {
  const int64_t begun = ticks();
  const int64_t runs = (job.items + job.grain - 1) / job.grain;
  const int64_t hands = engaged_ + 1;
  done_.store(0, std::memory_order_relaxed);
  for (int64_t i = 0; i < hands; ++i) parts_[static_cast<size_t>(i)].job = job;
  for (int64_t i = hands - 1; i >= 0; --i) {
    Part& part = parts_[static_cast<size_t>(i)];
    part.runs.store(pack(static_cast<uint64_t>(runs * i / hands), static_cast<uint64_t>(runs * (i + 1) / hands)));
    if (i > 0) wake(part);
  }
  int64_t own = take(0, 0);
  for (int i = 1; i < threads(); ++i) own += take(i, 0);
  const int64_t through = ticks();
  for (int spins = 1; done_.load(std::memory_order_acquire) != runs - own; ++spins) {
    if (spins > SPINS_PATIENT && spins % SPINS_A_LOOK == 0)
      std::this_thread::yield();  // it may want this very core
    else
      pause_briefly();
  }
  if (own > 0) {
    alone_ += static_cast<double>(through - begun) * static_cast<double>(runs) / static_cast<double>(own);
    together_ += static_cast<double>(ticks() - begun);
  }
  if (failure_) {
    failing_.clear();
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

// Does runs that others have not begun, one by one, until there is something in its own part again: then the next job is
// there.
void ThreadPool::take_over(int thread) {
  const Part& own = parts_[static_cast<size_t>(thread)];
  const int hands = threads();
  for (int i = 1; i < hands; ++i)
    while (none(own.runs.load(std::memory_order_relaxed)) && take((thread + i) % hands, thread, 1) == 1)
      done_.fetch_add(1, std::memory_order_release);
}

// Does up to `most` runs of the owner's part that nobody has begun; gives how many.
int64_t ThreadPool::take(int owner, int thread, int64_t most) {
  Part& part = parts_[static_cast<size_t>(owner)];
  int64_t count = 0;
  uint64_t runs = part.runs.load(std::memory_order_acquire);
  while (!none(runs)) {
    const uint64_t mine = owner == thread ? first_of(runs) : end_of(runs) - 1;
    const uint64_t left = owner == thread ? pack(mine + 1, end_of(runs)) : pack(first_of(runs), mine);
    if (!part.runs.compare_exchange_weak(runs, left, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    const Job& job = part.job;
    const int64_t first = static_cast<int64_t>(mine) * job.grain;
    try {
      job.call(job.context, first, std::min(first + job.grain, job.items), thread);
    } catch (...) {
      if (!failing_.test_and_set()) failure_ = std::current_exception();
    }
    if (++count == most) break;
    runs = part.runs.load(std::memory_order_acquire);
  }
  return count;
}

void ThreadPool::wake(Part& part) {
  if (part.parked.load() == 0) return;
  part.parked.store(0);
  part.parked.notify_one();
}

void ThreadPool::work(int thread) {
  Part& part = parts_[static_cast<size_t>(thread)];
  Turn turn;
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (none(part.runs.load(std::memory_order_acquire))) {
      wait(part, turn);
      continue;
    }
    if (const int64_t count = take(thread, thread)) done_.fetch_add(count, std::memory_order_release);
    take_over(thread);
    turn.idle_ns = CpuMeter::wall_ns();
    if (turn.idle_ns - turn.begun_ns > TURN_NS) turn.end(part.lost_ns);
  }
}

// Until there is something to do, or for a while.
void ThreadPool::wait(Part& part, Turn& turn) {
  for (int i = 0; i < SPINS_A_LOOK; ++i) {
    if (!none(part.runs.load(std::memory_order_acquire))) return;
    pause_briefly();
  }
  const int64_t now = CpuMeter::wall_ns();
  if (now - turn.idle_ns > (in_step_.load(std::memory_order_relaxed) ? PARK_IN_STEP_NS : PARK_NS)) {
    part.parked.store(1);
    if (none(part.runs.load()) && !stopping_.load()) part.parked.wait(1);
    part.parked.store(0);
    turn = Turn();
  }
}

void ThreadPool::begin_step() {
  if (most_ == 0) return;
  const Clock::time_point now = Clock::now();
  if (now - window_ > WINDOW) weigh(now);
  if (free_cpu_ >= 0) follow_caller();
  in_step_.store(true, std::memory_order_relaxed);
  for (int i = 1; i <= engaged_; ++i) wake(parts_[static_cast<size_t>(i)]);
  meter_.start();
}

void ThreadPool::end_step() {
  if (most_ == 0) return;
  in_step_.store(false, std::memory_order_relaxed);
  lost_ns_ += meter_.lost_ns();
  in_steps_ns_ += meter_.elapsed_ns();
}

// Leaves workers out that are of no use, and tries again with them now and then. Where the caller lost time (to a quota,
// to its own worker on the same core) it is assumed that alone it would not.
void ThreadPool::weigh(Clock::time_point now) {
  const double lost = in_steps_ns_ > 0 ? static_cast<double>(lost_ns_) / static_cast<double>(in_steps_ns_) : 0.0;
  const bool moved = free_cpu_ >= 0 && lost > CROWDED && leave_core();
  if (engaged_ < most_ && now >= try_again_) {
    engaged_ = std::min(most_, std::max(1, 2 * engaged_));
  } else if (engaged_ > 0 && together_ > 0 && !moved) {
    if (alone_ * (1.0 - lost) < WORTH * together_) {
      left_out_ = std::clamp<std::chrono::milliseconds>(2 * left_out_, LEFT_OUT_LEAST, LEFT_OUT_MOST);
      try_again_ = now + left_out_;
      engaged_ /= 2;
    } else {
      left_out_ = 0ms;
    }
  }
  alone_ = together_ = 0;
  lost_ns_ = in_steps_ns_ = 0;
  for (int i = 1; i < threads(); ++i) parts_[static_cast<size_t>(i)].lost_ns.store(0, std::memory_order_relaxed);
  window_ = now;
}

void ThreadPool::move_worker(size_t worker, int cpu) {
  pin(workers_[worker - 1], cpu);
  parts_[worker].cpu = cpu;
}

// The system has moved the caller to a worker's core: that worker takes the free one.
void ThreadPool::follow_caller() {
  const int here = current_cpu();
  for (size_t i = 1; i <= workers_.size(); ++i) {
    if (parts_[i].cpu != here) continue;
    move_worker(i, free_cpu_);
    free_cpu_ = here;
  }
}

// Somebody else keeps the caller's core busy, and all wait for the caller: it changes places with the worker that lost
// least.
bool ThreadPool::leave_core() {
  size_t best = 0;
  int64_t least = lost_ns_ / 2;
  for (size_t i = 1; i <= workers_.size(); ++i) {
    const int64_t lost = parts_[i].lost_ns.load(std::memory_order_relaxed);
    if (lost < least) least = lost, best = i;
  }
  if (best == 0) return false;
  const int there = parts_[best].cpu;
  move_worker(best, free_cpu_);
  hop_to(there);
  free_cpu_ = there;
  return true;
}

}  // namespace puna
