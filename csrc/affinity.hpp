// Where threads run: the CPUs this process may use, a thread's place among them, and how much of the time that it wanted
// to run it did. On systems without these calls nothing is pinned and nothing seems lost.
#pragma once

#include <chrono>
#include <cstdint>
#include <ctime>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace puna {

// CPUs that the calling thread may run on; empty where the system does not tell.
inline std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
#endif
  return cpus;
}

inline int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// What is not allowed is not done: a pin is a wish.
inline void pin(std::thread& thread, int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
#else
  (void)thread, (void)cpu;
#endif
}

// The calling thread runs from now on only where no other thread of the machine wants to.
inline void run_when_idle() {
#if defined(__linux__)
  const sched_param none{};
  pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
#endif
}

// Moves the calling thread to `cpu` and leaves its mask as it was.
inline void hop_to(int cpu) {
#if defined(__linux__)
  cpu_set_t before, there;
  CPU_ZERO(&there);
  CPU_SET(cpu, &there);
  if (sched_getaffinity(0, sizeof before, &before) != 0) return;
  if (sched_setaffinity(0, sizeof there, &there) == 0) sched_setaffinity(0, sizeof before, &before);
#else
  (void)cpu;
#endif
}

// CPU time of the calling thread beside the wall's.
class CpuMeter {
 public:
  void start() { wall_ = wall_ns(), cpu_ = cpu_ns(); }
  int64_t elapsed_ns() const { return wall_ns() - wall_; }
  // Time since start() that the thread did not have a core; call it on a thread that did not sleep.
  int64_t lost_ns() const {
    const int64_t lost = elapsed_ns() - (cpu_ns() - cpu_);
    return lost > 0 ? lost : 0;
  }

  static int64_t wall_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

 private:
  static int64_t cpu_ns() {
#if defined(__linux__)
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return int64_t{1000000000} * now.tv_sec + now.tv_nsec;
#else
    return wall_ns();
#endif
  }

  int64_t wall_ = 0;
  int64_t cpu_ = 0;
};

}  // namespace puna
