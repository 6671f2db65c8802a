// Cuts the attention of one step into items of work for the threads, and calls the kernel for each.
//
// It knows which tokens of which sequences a step holds and how long their histories are; it knows nothing of how a
// score is computed (attention.hpp) or where a block lies (kv_pool.hpp). Who computes an item, and whether a long history
// is one item or several, never changes a bit: the kernel merges ranges of keys in the order of their positions.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.hpp"
#include "kv_pool.hpp"
#include "rows.hpp"
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
  void begin(const StepTables& step);

  // out [tokens, heads * head_dim]; `query` likewise. Every key and value of the step must have been stored.
  void run(const KernelTable& kernels, ThreadPool& threads, const KVPool& pool, const AttendShape& shape,
           const float* query, float* out);

 private:
  // Some ranges of keys for a tile of tokens of one sequence; one for each key head.
  struct Item {
    int32_t sequence;
    int32_t token;  // the first one, in the batch
    int32_t count;
    int32_t first_range;
    int32_t last_range;
    int32_t split;  // -1: the item is all there is; else which of the plan's splits it belongs to
    int64_t cost;
  };
  // A tile of tokens whose ranges are several items: partial results, merged by whoever finishes last.
  struct Split {
    int32_t first_range;
    int32_t last_range;
    int32_t pieces;
    int64_t partials_at;  // in floats
    int64_t partial_floats;  // of all its ranges, for one key head; those of the other heads follow
  };
  // Layers of equal shape share a plan.
  struct Plan {
    int64_t kv_heads;
    int64_t group;
    int64_t head_dim;
    int window;
    std::vector<Item> items;
    std::vector<Split> splits;
    int64_t partial_floats;
    int64_t most_rows;
  };
  const Plan& plan_for(const KVLayer& layer, const AttendShape& shape, int threads);
  void cut_tokens(Plan& plan);
  void cut_ranges(Plan& plan, int threads);
  KeySpan span_of(const Plan& plan, const KVPool& pool, size_t layer, int64_t item) const;

  StepTables step_{};
  std::vector<Plan> plans_;
  size_t plans_used_ = 0;  // of this step; the others keep their memory
  std::unique_ptr<std::atomic<int32_t>[]> unfinished_;  // pieces of [splits, kv_heads]
  int64_t unfinished_count_ = 0;
  Floats partials_;
  std::vector<Floats> scratch_;  // a thread
};

}  // namespace puna
