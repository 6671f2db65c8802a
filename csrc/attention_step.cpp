#include "attention_step.hpp"

#include <algorithm>
#include <cstring>

namespace puna {

namespace {

constexpr int64_t ITEMS_A_THREAD = 6;  // that a long history is cut into, at most
constexpr int64_t GRAINS_A_THREAD = 8;  // runs of items: a thread knows what it will read next within one
constexpr int64_t TILE_COST = 64;      // what a tile costs beside its keys, in keys
constexpr int64_t PARTIAL_FLOATS = 2 << 20;  // a thread, of what pieces of tiles leave to be merged: 8 MiB
constexpr int64_t KEY_COST = 3;        // what a key costs beside its rows, in rows: it is read and converted

}  // namespace

void AttentionStep::begin(const StepTables& step) {
  step_ = step;
  plans_used_ = 0;
}

const AttentionStep::Plan& AttentionStep::plan_for(const KVPool& pool, const AttendShape& shape, int threads,
                                                 int64_t tile_rows) {
  const KVLayer& layer = pool.layers()[shape.layer];
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
  plan.items.clear();
  plan.rounds.clear();
  plan.splits.clear();
  plan.partial_floats = 0;
  plan.most_rows = 0;
  const int32_t tile = static_cast<int32_t>(std::max<int64_t>(1, tile_rows / plan.group));
  plan.shared.find(step_, pool.config().block_size, plan.window, tile);
  cut_shared(plan, tile, threads);
  cut_tokens(plan, tile);
  end_round(plan, threads);
  return plan;
}

// Tokens of several sequences, in tiles of about equal size.
void AttentionStep::cut_shared(Plan& plan, int32_t tile, int threads) {
  int32_t level = 0;
  for (const SharedRun& run : plan.shared.runs()) {
    if (run.level != level) end_round(plan, threads);
    level = run.level;
    const int32_t tiles = (run.count + tile - 1) / tile;
    for (int32_t i = 0; i < tiles; ++i) {
      const int32_t first = static_cast<int32_t>(int64_t{run.count} * i / tiles);
      const int32_t count = static_cast<int32_t>(int64_t{run.count} * (i + 1) / tiles) - first;
      const int64_t rows = count * plan.group, keys = int64_t{run.last_range - run.first_range} * ATTEND_RANGE;
      plan.items.push_back({run.sequence, -1, run.first + first, count, run.first_range, run.last_range, -1,
                            (keys + TILE_COST) * (rows + KEY_COST)});
      plan.most_rows = std::max(plan.most_rows, rows);
    }
  }
  if (!plan.items.empty()) end_round(plan, threads);
}

// Tokens of one sequence whose rows fill a tile, and all ranges that it does not share.
void AttentionStep::cut_tokens(Plan& plan, int32_t tile) {
  for (int32_t r = 0; r < step_.sequences; ++r) {
    const int32_t shared = plan.shared.ranges_of(r), first = step_.query_start[r];
    for (int32_t t = first; t < step_.query_start[r + 1]; t += tile) {
      const int32_t count = std::min(tile, step_.query_start[r + 1] - t);
      const int32_t seen = plan.window > 0 ? std::max(0, step_.positions[t] - plan.window + 1) : 0;
      const int32_t begin = std::max(seen, shared * ATTEND_RANGE), end = step_.positions[t] + count;
      const int64_t rows = count * plan.group;
      plan.items.push_back({r, t, shared > 0 ? plan.shared.place_of(r) + t - first : -1, count, begin / ATTEND_RANGE,
                            (end + ATTEND_RANGE - 1) / ATTEND_RANGE, -1, (end - begin + TILE_COST) * (rows + KEY_COST)});
      plan.most_rows = std::max(plan.most_rows, rows);
    }
  }
}

// Items since the last round run at once: the longest first, so that what is left at the end is short.
void AttentionStep::end_round(Plan& plan, int threads) {
  const size_t first = plan.rounds.empty() ? 0 : plan.rounds.back();
  if (threads > 1) cut_ranges(plan, first, threads);
  std::stable_sort(plan.items.begin() + static_cast<std::ptrdiff_t>(first), plan.items.end(),
                   [](const Item& a, const Item& b) { return a.cost > b.cost; });
  plan.rounds.push_back(plan.items.size());
}

// A tile whose history would keep one thread busy while others wait becomes several items; as long as what its ranges
// leave to be merged, which grows with the history, fits into a bound that does not.
void AttentionStep::cut_ranges(Plan& plan, size_t first, int threads) {
  int64_t total = 0;
  const size_t tiles = plan.items.size();
  for (size_t i = first; i < tiles; ++i) total += plan.items[i].cost * plan.kv_heads;
  const int64_t fair = total / (threads * ITEMS_A_THREAD) + 1;
  for (size_t i = first; i < tiles; ++i) {
    const Item tile = plan.items[i];
    const int64_t ranges = tile.last_range - tile.first_range;
    const int64_t pieces = std::min(ranges, tile.cost / fair);
    const int64_t floats = ranges * attend_partial_floats(tile.count * plan.group, plan.head_dim);
    if (pieces < 2 || plan.partial_floats + floats * plan.kv_heads > PARTIAL_FLOATS * threads) continue;
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
    plan.splits.push_back({tile.first_range, tile.last_range, static_cast<int32_t>(pieces), plan.partial_floats, floats});
    plan.partial_floats += floats * plan.kv_heads;
  }
}

void AttentionStep::count_pieces(const Plan& plan) {
  const int64_t counters = static_cast<int64_t>(plan.splits.size()) * plan.kv_heads;
  if (counters > unfinished_count_) {
    unfinished_ = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(counters));
    unfinished_count_ = counters;
  }
  for (int64_t i = 0; i < counters; ++i)
    unfinished_[static_cast<size_t>(i)].store(plan.splits[static_cast<size_t>(i / plan.kv_heads)].pieces, std::memory_order_relaxed);
}

// What a thread needs at most: for the kernel, then for queries.
int64_t AttentionStep::scratch_floats(const Plan& plan) const {
  const int64_t kernel = attend_scratch_floats(plan.most_rows, plan.head_dim);
  return plan.shared.runs().empty() ? kernel : kernel + plan.most_rows * plan.head_dim;
}

void AttentionStep::run(const KernelTable& kernels, ThreadPool& threads, const KVPool& pool, const AttendShape& shape,
                        const float* query, float* out) {
  const Plan& plan = plan_for(pool, shape, threads.threads(), kernels.attend_rows(pool.layout(shape.layer)));
  const Layer layer{kernels, pool, shape, plan, query, out};
  count_pieces(plan);
  partials_.reserve(static_cast<size_t>(plan.partial_floats));
  gathered_.reserve(plan.shared.tokens().size() * static_cast<size_t>(plan.kv_heads * attend_partial_floats(plan.group, plan.head_dim)));
  scratch_.resize(static_cast<size_t>(threads.threads()));
  const size_t needed = static_cast<size_t>(scratch_floats(plan));
  int64_t begun = 0;
  for (const size_t end : plan.rounds) {
    const int64_t items = static_cast<int64_t>(end) * plan.kv_heads - begun;
    const int64_t grain = std::max<int64_t>(1, items / (threads.threads() * GRAINS_A_THREAD));
    threads.run(items, grain, [&](int64_t first, int64_t last, int thread) {
      Floats& scratch = scratch_[static_cast<size_t>(thread)];
      scratch.reserve(needed);
      for (int64_t i = begun + first; i < begun + last; ++i)
        run_item(layer, i, i + 1 < begun + last ? span_of(layer, i + 1) : KeySpan{}, scratch.data());
    });
    begun += items;
  }
}

// The first range of an item.
KeySpan AttentionStep::span_of(const Layer& layer, int64_t i) const {
  const Item& item = layer.plan.items[static_cast<size_t>(i / layer.plan.kv_heads)];
  const int32_t* table = step_.tables + item.sequence * step_.table_width;
  const uint8_t* head_pool = layer.pool.head(layer.shape.layer, i % layer.plan.kv_heads);
  const int begin = item.first_range * ATTEND_RANGE, end = begin + ATTEND_RANGE;
  if (item.token < 0) return {table, head_pool, begin, end};
  const int32_t position = step_.positions[item.token];
  const int seen = layer.plan.window > 0 ? std::max(0, position - layer.plan.window + 1) : 0;
  return {table, head_pool, std::max(begin, seen), std::min(end, position + item.count)};
}

// The queries of one key head of an item whose tokens do not lie side by side in the batch.
const float* AttentionStep::gather_queries(const Layer& layer, const Item& item, int64_t head, float* to) const {
  const int64_t width = layer.plan.group * layer.plan.head_dim, stride = layer.shape.heads * layer.plan.head_dim;
  const int32_t* token = layer.plan.shared.tokens().data() + item.place;
  for (int32_t t = 0; t < item.count; ++t)
    std::memcpy(to + t * width, layer.query + token[t] * stride + head * width, sizeof(float) * static_cast<size_t>(width));
  return to;
}

void AttentionStep::run_item(const Layer& layer, int64_t i, const KeySpan& next, float* scratch) {
  const Plan& plan = layer.plan;
  const Item& item = plan.items[static_cast<size_t>(i / plan.kv_heads)];
  const int64_t h = i % plan.kv_heads, dim = plan.head_dim, group = plan.group;
  AttendArgs args{};
  args.tokens = item.count;
  args.group = static_cast<int>(group);
  args.table = step_.tables + item.sequence * step_.table_width;
  args.head_pool = layer.pool.head(layer.shape.layer, h);
  args.layout = layer.pool.layout(layer.shape.layer);
  args.scale = layer.shape.scale;
  args.softcap = layer.shape.softcap;
  args.first_range = item.first_range;
  args.last_range = item.last_range;
  args.next = next;
  args.scratch = scratch;
  float* record = nullptr;
  if (item.place >= 0) {
    const int64_t places = static_cast<int64_t>(plan.shared.tokens().size());
    record = gathered_.data() + (h * places + item.place) * attend_partial_floats(group, dim);
  }
  if (item.token < 0) {
    args.query = gather_queries(layer, item, h, scratch + attend_scratch_floats(plan.most_rows, dim));
    args.query_stride = group * dim;
    args.position = item.last_range * ATTEND_RANGE - 1;  // from where all of it is seen
    const bool begun = (item.split < 0 ? item.first_range : plan.splits[static_cast<size_t>(item.split)].first_range) > 0;
    args.before = begun ? record : nullptr;
    args.after = record;
  } else {
    const int64_t at = (item.token * layer.shape.heads + h * group) * dim;
    args.query = layer.query + at;
    args.out = layer.out + at;
    args.query_stride = layer.shape.heads * dim;
    args.position = step_.positions[item.token];
    args.window = layer.shape.window;
    args.before = record;
  }
  if (item.split < 0) return layer.kernels.attend(args);
  const Split& split = plan.splits[static_cast<size_t>(item.split)];
  float* const pieces = partials_.data() + split.partials_at + h * split.partial_floats;
  args.partials = pieces + (item.first_range - split.first_range) * attend_partial_floats(item.count * group, dim);
  layer.kernels.attend(args);
  if (unfinished_[static_cast<size_t>(item.split * plan.kv_heads + h)].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  args.partials = pieces;
  args.first_range = split.first_range;
  args.last_range = split.last_range;
  layer.kernels.attend_merge(args);
}

}  // namespace puna
