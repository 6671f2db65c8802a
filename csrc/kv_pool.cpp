#include "kv_pool.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace puna {

KVPool::KVPool(std::vector<KVLayer> layers, PoolConfig config) : layers_(std::move(layers)), config_(config) {
  if (config_.block_size <= 0 || config_.block_size % 16 != 0)
    throw std::invalid_argument("block_size is " + std::to_string(config_.block_size) + "; it is a multiple of 16");
  if (config_.num_blocks < 2) throw std::invalid_argument("the pool needs at least two blocks");
  for (const KVLayer& layer : layers_) {
    if (layer.head_dim <= 0 || layer.head_dim % 16 != 0 || layer.head_dim > MAX_HEAD_DIM)
      throw std::invalid_argument("head_dim is " + std::to_string(layer.head_dim) +
                                  "; the native core takes multiples of 16 up to " + std::to_string(MAX_HEAD_DIM));
    const CacheLayout layout = cache_layout(config_.cache, config_.block_size, static_cast<int>(layer.head_dim), config_.tiles);
    shares_.push_back({layout, block_bytes_});
    block_bytes_ += layout.block_bytes * static_cast<size_t>(layer.kv_heads);
  }
  for (Share& share : shares_) share.layout.block_stride = block_bytes_;
  pool_ = Region(block_bytes_ * static_cast<size_t>(config_.num_blocks));
  tier_ = Region(block_bytes_ * static_cast<size_t>(config_.tier_blocks));
  if (config_.touched_ahead <= 0) return;
  toucher_ = std::make_unique<PageToucher>(pool_.data(), pool_.size());
  toucher_->want(static_cast<size_t>(config_.touched_ahead));
}

// Blocks that were never used come in the order of their ids.
void KVPool::touch_ahead(const StepTables& step) {
  int32_t last = 0;
  for (int64_t r = 0; r < step.sequences; ++r) {
    if (step.query_start[r] == step.query_start[r + 1]) continue;
    const int32_t position = step.positions[step.query_start[r + 1] - 1];
    last = std::max(last, step.tables[r * step.table_width + position / config_.block_size]);
  }
  toucher_->want(static_cast<size_t>(last + 1) * block_bytes_ + static_cast<size_t>(config_.touched_ahead));
}

uint8_t* KVPool::block(size_t layer, int64_t kv_head, int64_t id) const {
  const Share& share = shares_[layer];
  return pool_.data() + static_cast<size_t>(id) * block_bytes_ + share.at + static_cast<size_t>(kv_head) * share.layout.block_bytes;
}

void KVPool::move(const int32_t* move) {
  const bool from_tier = move[0] == 2, to_tier = move[0] == 1;
  if (!from_tier && !to_tier && move[1] == move[2]) return;
  std::memcpy((to_tier ? tier_ : pool_).data() + static_cast<size_t>(move[2]) * block_bytes_,
              (from_tier ? tier_ : pool_).data() + static_cast<size_t>(move[1]) * block_bytes_, block_bytes_);
}

void KVPool::store(const KernelTable& kernels, ThreadPool& threads, const StepTables& step, size_t l, const float* key,
                   const float* value) {
  const KVLayer& layer = layers_[l];
  const int64_t stride = layer.kv_heads * layer.head_dim;
  if (toucher_ && l == 0) touch_ahead(step);
  // Runs of tokens that share a tile of sixteen slots: they are written together.
  runs_.clear();
  for (int64_t r = 0; r < step.sequences; ++r)
    for (int32_t t = step.query_start[r]; t < step.query_start[r + 1];) {
      runs_.push_back(static_cast<int32_t>(r));
      runs_.push_back(t);
      t = std::min(step.query_start[r + 1], t + KEY_TILE - step.positions[t] % KEY_TILE);
      runs_.push_back(t);
    }
  constexpr int64_t GRAIN = 4;  // fewer are quicker on the calling thread
  threads.run(static_cast<int64_t>(runs_.size() / 3), GRAIN, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t* run = runs_.data() + 3 * i;
      const int32_t position = step.positions[run[1]];
      const int64_t id = step.tables[run[0] * step.table_width + position / config_.block_size];
      for (int64_t h = 0; h < layer.kv_heads; ++h) {
        const int64_t at = run[1] * stride + h * layer.head_dim;
        kernels.store_cache({key + at, value + at, stride, run[2] - run[1], position % config_.block_size,
                             block(l, h, id), shares_[l].layout});
      }
    }
  });
}

}  // namespace puna
