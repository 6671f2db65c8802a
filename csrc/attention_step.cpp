#include "attention_step.hpp"

#include <algorithm>

namespace puna {

namespace {

constexpr int64_t TILE_ROWS = 48;       // of a tile of tokens: enough to hide widening, few enough for a cache
constexpr int64_t ITEMS_A_THREAD = 6;  // that a long history is cut into, at most
constexpr int64_t GRAINS_A_THREAD = 8;  // runs of items: a thread knows what it will read next within one
constexpr int64_t TILE_COST = 64;      // what a tile costs beside its keys, in keys
constexpr int64_t KEY_COST = 3;        // what a key costs beside its rows, in rows: it is read and converted

}  // namespace

void AttentionStep::begin(const StepTables& step) {
  step_ = step;
  plans_used_ = 0;
}

const AttentionStep::Plan& AttentionStep::plan_for(const KVLayer& layer, const AttendShape& shape, int threads) {
  const int64_t group = shape.heads / layer.kv_heads;
  for (size_t i = 0; i < plans_used_; ++i) {
    const Plan& p = plans_[i];
    if (p.kv_heads == layer.kv_heads && p.group == group && p.head_dim == layer.head_dim && p.window == shape.window) return p;
  }
  if (plans_.size() == plans_used_) plans_.emplace_back();
  Plan& plan = plans_[plans_used_++];
  plan.kv_heads = layer.kv_heads;
  plan.group = group;
  plan.head_dim = layer.head_dim;
  plan.window = shape.window;
  cut_tokens(plan);
  if (threads > 1) cut_ranges(plan, threads);
  // The longest first: what is left at the end is short.
  std::stable_sort(plan.items.begin(), plan.items.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  return plan;
}

// Tokens of one sequence whose rows fill a tile.
void AttentionStep::cut_tokens(Plan& plan) {
  plan.items.clear();
  plan.splits.clear();
  plan.partial_floats = 0;
  plan.most_rows = 0;
  const int32_t tile = static_cast<int32_t>(std::max<int64_t>(1, TILE_ROWS / plan.group));
  for (int32_t r = 0; r < step_.sequences; ++r) {
    for (int32_t t = step_.query_start[r]; t < step_.query_start[r + 1]; t += tile) {
      const int32_t count = std::min(tile, step_.query_start[r + 1] - t);
      const int32_t begin = plan.window > 0 ? std::max(0, step_.positions[t] - plan.window + 1) : 0;
      const int32_t end = step_.positions[t] + count;
      const int64_t rows = count * plan.group;
      plan.items.push_back({r, t, count, begin / ATTEND_RANGE, (end + ATTEND_RANGE - 1) / ATTEND_RANGE, -1,
                            (end - begin + TILE_COST) * (rows + KEY_COST)});
      plan.most_rows = std::max(plan.most_rows, rows);
    }
  }
}

// A tile whose history would keep one thread busy while others wait becomes several items.
void AttentionStep::cut_ranges(Plan& plan, int threads) {
  int64_t total = 0;
  for (const Item& item : plan.items) total += item.cost * plan.kv_heads;
  const int64_t fair = total / (threads * ITEMS_A_THREAD) + 1;
  const size_t tiles = plan.items.size();
  for (size_t i = 0; i < tiles; ++i) {
    const Item tile = plan.items[i];
    const int64_t ranges = tile.last_range - tile.first_range;
    const int64_t pieces = std::min(ranges, tile.cost / fair);
    if (pieces < 2) continue;
    for (int64_t p = 0; p < pieces; ++p) {
      Item piece = tile;
      piece.first_range = tile.first_range + static_cast<int32_t>(ranges * p / pieces);
      piece.last_range = tile.first_range + static_cast<int32_t>(ranges * (p + 1) / pieces);
      piece.split = static_cast<int32_t>(plan.splits.size());
      piece.cost = tile.cost / pieces;
      if (p == 0)
        plan.items[i] = piece;
      else
        plan.items.push_back(piece);
    }
    const int64_t floats = ranges * attend_partial_floats(tile.count * plan.group, plan.head_dim);
    plan.splits.push_back({tile.first_range, tile.last_range, static_cast<int32_t>(pieces), plan.partial_floats, floats});
    plan.partial_floats += floats * plan.kv_heads;
  }
}

// The first range of an item.
KeySpan AttentionStep::span_of(const Plan& plan, const KVPool& pool, size_t layer, int64_t i) const {
  const Item& item = plan.items[static_cast<size_t>(i / plan.kv_heads)];
  const int32_t end = step_.positions[item.token] + item.count;
  const int32_t begin = plan.window > 0 ? std::max(0, step_.positions[item.token] - plan.window + 1) : 0;
  return {step_.tables + item.sequence * step_.table_width, pool.head(layer, i % plan.kv_heads),
          std::max(begin, item.first_range * ATTEND_RANGE), std::min(end, (item.first_range + 1) * ATTEND_RANGE)};
}

void AttentionStep::run(const KernelTable& kernels, ThreadPool& threads, const KVPool& pool, const AttendShape& shape,
                        const float* query, float* out) {
  const KVLayer& layer = pool.layers()[shape.layer];
  const Plan& plan = plan_for(layer, shape, threads.threads());
  const int64_t kv_heads = plan.kv_heads, dim = plan.head_dim, group = plan.group;
  const int64_t counters = static_cast<int64_t>(plan.splits.size()) * kv_heads;
  if (counters > unfinished_count_) {
    unfinished_ = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(counters));
    unfinished_count_ = counters;
  }
  for (int64_t i = 0; i < counters; ++i)
    unfinished_[static_cast<size_t>(i)].store(plan.splits[static_cast<size_t>(i / kv_heads)].pieces, std::memory_order_relaxed);
  partials_.reserve(static_cast<size_t>(plan.partial_floats));
  scratch_.resize(static_cast<size_t>(threads.threads()));
  const size_t scratch_floats = static_cast<size_t>(attend_scratch_floats(plan.most_rows, dim));
  const int64_t items = static_cast<int64_t>(plan.items.size()) * kv_heads;
  const int64_t grain = std::max<int64_t>(1, items / (threads.threads() * GRAINS_A_THREAD));
  threads.run(items, grain, [&](int64_t first, int64_t last, int thread) {
    Floats& scratch = scratch_[static_cast<size_t>(thread)];
    scratch.reserve(scratch_floats);
    for (int64_t i = first; i < last; ++i) {
      const Item& item = plan.items[static_cast<size_t>(i / kv_heads)];
      const int64_t h = i % kv_heads;
      const int64_t at = (item.token * shape.heads + h * group) * dim;
      AttendArgs args{};
      args.query = query + at;
      args.out = out + at;
      args.query_stride = shape.heads * dim;
      args.tokens = item.count;
      args.group = static_cast<int>(group);
      args.position = step_.positions[item.token];
      args.table = step_.tables + item.sequence * step_.table_width;
      args.head_pool = pool.head(shape.layer, h);
      args.layout = pool.layout(shape.layer);
      args.scale = shape.scale;
      args.window = shape.window;
      args.softcap = shape.softcap;
      args.first_range = item.first_range;
      args.last_range = item.last_range;
      args.scratch = scratch.data();
      if (i + 1 < last) args.next = span_of(plan, pool, shape.layer, i + 1);
      if (item.split < 0) {
        kernels.attend(args);
        continue;
      }
      const Split& split = plan.splits[static_cast<size_t>(item.split)];
      float* partials = partials_.data() + split.partials_at + h * split.partial_floats;
      args.partials = partials + (item.first_range - split.first_range) * attend_partial_floats(item.count * group, dim);
      kernels.attend(args);
      if (unfinished_[static_cast<size_t>(item.split * kv_heads + h)].fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
      args.partials = partials;
      args.first_range = split.first_range;
      args.last_range = split.last_range;
      kernels.attend_merge(args);
    }
  });
}

}  // namespace puna
