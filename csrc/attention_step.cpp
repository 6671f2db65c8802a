#include "attention_step.hpp"

#include <algorithm>

namespace puna {

namespace {

constexpr int32_t TOKENS = 16;  // of one sequence in one item

}  // namespace

void AttentionStep::plan(const StepTables& step) {
  step_ = step;
  items_.clear();
  for (int32_t r = 0; r < step.sequences; ++r)
    for (int32_t t = step.query_start[r]; t < step.query_start[r + 1]; t += TOKENS)
      items_.push_back({r, t, std::min(TOKENS, step.query_start[r + 1] - t)});
  // Late tokens have the longest history: they go first.
  std::stable_sort(items_.begin(), items_.end(), [&](const Item& a, const Item& b) {
    return step.positions[a.first] > step.positions[b.first];
  });
}

void AttentionStep::run(const KernelTable& kernels, ThreadPool& threads, const KVPool& pool, const AttendShape& shape,
                        const float* query, float* out) {
  const KVLayer& layer = pool.layers()[shape.layer];
  const int64_t kv_heads = layer.kv_heads, dim = layer.head_dim, group = shape.heads / kv_heads;
  scratch_.resize(static_cast<size_t>(threads.threads()));
  threads.run(static_cast<int64_t>(items_.size()) * kv_heads, 1, [&](int64_t first, int64_t last, int thread) {
    std::vector<float>& scratch = scratch_[static_cast<size_t>(thread)];
    scratch.resize(static_cast<size_t>(4 * (dim + 16)));
    for (int64_t i = first; i < last; ++i) {
      const Item& item = items_[static_cast<size_t>(i / kv_heads)];
      const int64_t h = i % kv_heads;
      const int64_t at = (item.first * shape.heads + h * group) * dim;
      AttendArgs args{};
      args.query = query + at;
      args.out = out + at;
      args.query_stride = shape.heads * dim;
      args.positions = step_.positions + item.first;
      args.rows = item.count;
      args.table = step_.tables + item.sequence * step_.table_width;
      args.head_pool = pool.head(shape.layer, h);
      args.block_bytes = pool.block_bytes(shape.layer);
      args.block_size = pool.config().block_size;
      args.group = static_cast<int>(group);
      args.head_dim = static_cast<int>(dim);
      args.cache = pool.config().cache;
      args.scale = shape.scale;
      args.window = shape.window;
      args.softcap = shape.softcap;
      args.scratch = scratch.data();
      kernels.attend(args);
    }
  });
}

}  // namespace puna
