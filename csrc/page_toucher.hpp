// Memory that is about to be used is touched by a thread of its own where the processor is idle, so that no step waits
// for the system to find and clear pages; in a virtual machine whose host takes them back they are slow to come.
//
// It knows bytes from the beginning of a mapping and changes none of them. How much is wanted is told by the owner.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

namespace puna {

class PageToucher {
 public:
  // The mapping must outlive this. Nothing is touched in the first half second: who only wants a word is gone by then.
  PageToucher(uint8_t* data, size_t bytes);
  ~PageToucher();
  PageToucher(const PageToucher&) = delete;
  PageToucher& operator=(const PageToucher&) = delete;

  // That so many bytes from the beginning will be used. Never waits.
  void want(size_t bytes);

 private:
  void work();

  uint8_t* data_;
  size_t bytes_;
  std::atomic<size_t> wanted_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;  // the owner takes it to stop only
  std::condition_variable news_;
  std::thread thread_;
};

}  // namespace puna
