// Cuts the attention of one step into items of work for the threads, and calls the kernel for each.
//
// It knows which tokens of which sequences a step holds, how long their histories are, and which of them begin with the
// same blocks (shared_prefixes.hpp); it knows nothing of how a score is computed (attention.hpp) or where a block lies
// (kv_pool.hpp). Who computes an item, whether a long history is one item or several, and whether other sequences' tokens
// are in it never changes a bit: the kernel merges ranges of keys in the order of their positions.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.hpp"
#include "kv_pool.hpp"
#include "rows.hpp"
#include "shared_prefixes.hpp"
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
  // Some ranges of keys for a tile of tokens; one for each key head. The tokens are `count` neighbours in the batch and of
  // one sequence; or, where ranges are shared, neighbours among the places of shared_prefixes.hpp.
  struct Item {
    int32_t sequence;
    int32_t token;  // the first one, in the batch; -1: shared
    int32_t place;  // the first one's, where ranges were or are shared, else -1
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
    SharedPrefixes shared;
    std::vector<Item> items;
    std::vector<size_t> rounds;  // ends of the items that may run at once: each level of shared ranges, and the rest
    std::vector<Split> splits;
    int64_t partial_floats;
    int64_t most_rows;
  };
  struct Layer {
    const KernelTable& kernels;
    const KVPool& pool;
    const AttendShape& shape;
    const Plan& plan;
    const float* query;
    float* out;
  };
  const Plan& plan_for(const KVPool& pool, const AttendShape& shape, int threads, int64_t tile_rows);
  void cut_shared(Plan& plan, int32_t tile, int threads);
  void cut_tokens(Plan& plan, int32_t tile);
  void cut_ranges(Plan& plan, size_t first, int threads);
  void end_round(Plan& plan, int threads);
  void count_pieces(const Plan& plan);
  KeySpan span_of(const Layer& layer, int64_t item) const;
  void run_item(const Layer& layer, int64_t item, const KeySpan& next, float* scratch);
  const float* gather_queries(const Layer& layer, const Item& item, int64_t head, float* to) const;
  int64_t scratch_floats(const Plan& plan) const;

  StepTables step_{};
  std::vector<Plan> plans_;
  size_t plans_used_ = 0;  // of this step; the others keep their memory
  std::unique_ptr<std::atomic<int32_t>[]> unfinished_;  // pieces of [splits, kv_heads]
  int64_t unfinished_count_ = 0;
  Floats partials_;
  Floats gathered_;  // [kv_heads, places]: what tokens have of ranges that are shared, attend_partial_floats of a group each
  std::vector<Floats> scratch_;  // a thread
};

}  // namespace puna
