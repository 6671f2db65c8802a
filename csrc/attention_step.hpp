// Cuts the attention of one step into items of work for the threads, and calls the kernel for each.
//
// It knows which tokens of which sequences a step holds and how long their histories are; it knows nothing of how a
// score is computed (attention.hpp) or where a block lies (kv_pool.hpp). Who computes an item never changes a bit.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "kv_pool.hpp"
#include "thread_pool.hpp"

namespace puna {

// What one Attend operator asks for.
struct AttendShape {
  size_t layer;
  int64_t heads;
  int window;
  float scale;
  float softcap;
};

class AttentionStep {
 public:
  // Once a step, before the first `run`; the arrays of `step` must outlive the last one.
  void plan(const StepTables& step);

  // out [tokens, heads * head_dim]; `query` likewise. Every key and value of the step must have been stored.
  void run(const KernelTable& kernels, ThreadPool& threads, const KVPool& pool, const AttendShape& shape,
           const float* query, float* out);

 private:
  // A run of tokens of one sequence.
  struct Item {
    int32_t sequence;
    int32_t first;
    int32_t count;
  };
  StepTables step_{};
  std::vector<Item> items_;
  std::vector<std::vector<float>> scratch_;  // a thread
};

}  // namespace puna
