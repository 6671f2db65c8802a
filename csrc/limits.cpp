#include "limits.hpp"

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels.hpp"
#include "limits_loops.hpp"
#include "memory.hpp"
#include "thread_pool.hpp"

namespace puna {

namespace {

constexpr size_t LINE_RUN = 512;                    // bytes that one turn of the reading loop takes
constexpr size_t BYTES_BETWEEN_CLOCKS = 4u << 20;   // look at the clock this often
constexpr int64_t TURNS_BETWEEN_CLOCKS = 20000;
constexpr int SPINS_BEFORE_YIELD = 10000;           // a thread of the meeting may have lost its core
constexpr int ROUNDS_BETWEEN_CLOCKS = 256;

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class SpinBarrier {
 public:
  explicit SpinBarrier(int threads) : threads_(threads) {}

  void meet() {
    const uint32_t seen = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(seen + 1, std::memory_order_release);
      return;
    }
    for (int spins = 1; generation_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins % SPINS_BEFORE_YIELD == 0)
        std::this_thread::yield();
      else
        relax();
    }
  }

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

// To the `index`-th of the cores that this process may use; where that is refused the thread runs where it is put.
void pin(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const int count = CPU_COUNT(&allowed);
  for (int core = 0, nth = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || nth++ != index % count) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
    return;
  }
}

// Runs `work` on `threads` new threads, each on a core of its own, and gives the sum of what they return. `work` gets its
// number and a barrier, to begin together with the others after it has prepared.
double on_threads(int threads, const std::function<double(int, SpinBarrier&)>& work) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads is a number from 1 to 1024");
  SpinBarrier barrier(threads);
  std::vector<double> results(static_cast<size_t>(threads));
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i)
    workers.emplace_back([&, i] {
      pin(i);
      results[static_cast<size_t>(i)] = work(i, barrier);
    });
  for (std::thread& worker : workers) worker.join();
  double sum = 0;
  for (const double result : results) sum += result;
  return sum;
}

std::string settled(const std::string& path) {
  const Paths paths = available_paths();
  if (path == "auto") return paths.tables[0]->name;
  for (int i = 0; i < paths.count; ++i)
    if (path == paths.tables[i]->name) return path;
  throw std::invalid_argument("instruction path '" + path + "' cannot run here");
}

}  // namespace

double read_bytes_per_second(const std::string& path, int threads, size_t bytes, double seconds) {
  const loops::Read read = loops::read_of(settled(path));
  const size_t share = bytes / static_cast<size_t>(threads < 1 ? 1 : threads) / LINE_RUN * LINE_RUN;
  if (share == 0) throw std::invalid_argument("there are less than 512 bytes a thread to read");
  const Region all(share * static_cast<size_t>(threads));
  return on_threads(threads, [&](int thread, SpinBarrier& barrier) {
    uint8_t* mine = all.data() + share * static_cast<size_t>(thread);
    for (size_t i = 0; i < share; i += 64) mine[i] = static_cast<uint8_t>(i);  // its own thread touches it first
    uint64_t sum = read(mine, share);
    const size_t passes = BYTES_BETWEEN_CLOCKS / share + 1;
    barrier.meet();
    const Clock::time_point start = Clock::now();
    double done = 0, spent = 0;
    while (spent < seconds) {
      for (size_t i = 0; i < passes; ++i) sum ^= read(mine, share);
      done += static_cast<double>(passes * share);
      spent = since(start);
    }
    loops::keep(sum);
    return done / spent;
  });
}

double operations_per_second(const std::string& path, int threads, const std::string& kind, double seconds) {
  const loops::Multiply multiply = loops::multiply_of(settled(path), kind);
  if (multiply == nullptr) return 0;
  return on_threads(threads, [&](int, SpinBarrier& barrier) {
    multiply(TURNS_BETWEEN_CLOCKS);
    barrier.meet();
    const Clock::time_point start = Clock::now();
    double done = 0, spent = 0;
    while (spent < seconds) {
      done += multiply(TURNS_BETWEEN_CLOCKS);
      spent = since(start);
    }
    return done / spent;
  });
}

double barrier_seconds(int threads, double seconds) {
  std::atomic<bool> enough{false};
  const double sum = on_threads(threads, [&](int, SpinBarrier& barrier) {
    barrier.meet();
    const Clock::time_point start = Clock::now();
    int64_t rounds = 0;
    for (bool done = false; !done;) {
      for (int i = 0; i < ROUNDS_BETWEEN_CLOCKS; ++i) barrier.meet();
      rounds += ROUNDS_BETWEEN_CLOCKS;
      if (since(start) >= seconds) enough.store(true, std::memory_order_relaxed);
      barrier.meet();  // all read `enough` between the same two meetings
      done = enough.load(std::memory_order_relaxed);
      barrier.meet();
      rounds += 2;
    }
    return since(start) / static_cast<double>(rounds);
  });
  return sum / threads;
}

double dispatch_seconds(int threads, double seconds) {
  ThreadPool pool(threads, threads, true);
  const ThreadPool::Step awake(pool);
  auto nothing = [](int64_t, int64_t, int) {};
  for (int i = 0; i < ROUNDS_BETWEEN_CLOCKS; ++i) pool.run(threads, 1, nothing);
  const Clock::time_point start = Clock::now();
  int64_t rounds = 0;
  double spent = 0;
  while (spent < seconds) {
    for (int i = 0; i < ROUNDS_BETWEEN_CLOCKS; ++i) pool.run(threads, 1, nothing);
    rounds += ROUNDS_BETWEEN_CLOCKS;
    spent = since(start);
  }
  return spent / static_cast<double>(rounds);
}

}  // namespace puna
