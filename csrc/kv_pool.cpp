#include "kv_pool.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include "numeric.hpp"

namespace puna {

KVPool::KVPool(std::vector<KVLayer> layers, PoolConfig config) : layers_(std::move(layers)), config_(config) {
  if (config_.block_size <= 0 || config_.block_size % 16 != 0)
    throw std::invalid_argument("block_size is " + std::to_string(config_.block_size) + "; it is a multiple of 16");
  if (config_.num_blocks < 2) throw std::invalid_argument("the pool needs at least two blocks");
  for (const KVLayer& layer : layers_) {
    if (layer.head_dim <= 0 || layer.head_dim % 16 != 0 || layer.head_dim > MAX_HEAD_DIM)
      throw std::invalid_argument("head_dim is " + std::to_string(layer.head_dim) +
                                  "; the native core takes multiples of 16 up to " + std::to_string(MAX_HEAD_DIM));
    const size_t element = config_.cache == CacheType::f32 ? 4 : 2;
    const size_t bytes = static_cast<size_t>(2 * layer.head_dim * config_.block_size) * element;
    const size_t of_all_heads = bytes * static_cast<size_t>(layer.kv_heads);
    memory_.push_back({Region(of_all_heads * static_cast<size_t>(config_.num_blocks)),
                       Region(of_all_heads * static_cast<size_t>(config_.tier_blocks)), bytes});
  }
}

uint8_t* KVPool::block(size_t layer, bool in_tier, int64_t kv_head, int64_t id) const {
  const Memory& memory = memory_[layer];
  const int64_t count = in_tier ? config_.tier_blocks : config_.num_blocks;
  return (in_tier ? memory.tier : memory.pool).data() + static_cast<size_t>(kv_head * count + id) * memory.block_bytes;
}

void KVPool::move(const int32_t* move) {
  const bool from_tier = move[0] == 2, to_tier = move[0] == 1;
  if (!from_tier && !to_tier && move[1] == move[2]) return;
  for (size_t l = 0; l < layers_.size(); ++l)
    for (int64_t h = 0; h < layers_[l].kv_heads; ++h)
      std::memcpy(block(l, to_tier, h, move[2]), block(l, from_tier, h, move[1]), memory_[l].block_bytes);
}

void KVPool::store(const KernelTable& kernels, ThreadPool& threads, const StepTables& step, size_t l, const float* key,
                   const float* value) {
  const KVLayer& layer = layers_[l];
  constexpr int64_t GRAIN = 4;  // fewer tokens are quicker on the calling thread
  threads.run(step.tokens, GRAIN, [&](int64_t first, int64_t last, int) {
    int64_t r = 0;
    for (int64_t t = first; t < last; ++t) {
      while (step.query_start[r + 1] <= t) ++r;
      const int64_t position = step.positions[t];
      const int64_t id = step.tables[r * step.table_width + position / config_.block_size];
      for (int64_t h = 0; h < layer.kv_heads; ++h) {
        const int64_t at = (t * layer.kv_heads + h) * layer.head_dim;
        store_token(kernels, block(l, false, h, id), position % config_.block_size, layer.head_dim, key + at, value + at);
      }
    }
  });
}

void KVPool::store_token(const KernelTable& kernels, uint8_t* block, int64_t slot, int64_t dim, const float* key,
                         const float* value) const {
  const int64_t block_size = config_.block_size;
  if (config_.cache == CacheType::f16) {
    uint16_t* keys = reinterpret_cast<uint16_t*>(block);
    uint16_t halves[MAX_HEAD_DIM];
    kernels.to_half(key, halves, dim);
    for (int64_t d = 0; d < dim; ++d) keys[d * block_size + slot] = halves[d];
    kernels.to_half(value, keys + dim * block_size + slot * dim, dim);
  } else if (config_.cache == CacheType::bf16) {
    uint16_t* keys = reinterpret_cast<uint16_t*>(block);
    uint16_t* values = keys + dim * block_size + slot * dim;
    for (int64_t d = 0; d < dim; ++d) {
      keys[(d / 2 * block_size + slot) * 2 + d % 2] = float_to_bf16(key[d]);
      values[d] = float_to_bf16(value[d]);
    }
  } else {
    float* keys = reinterpret_cast<float*>(block);
    for (int64_t d = 0; d < dim; ++d) keys[d * block_size + slot] = key[d];
    std::memcpy(keys + dim * block_size + slot * dim, value, sizeof(float) * static_cast<size_t>(dim));
  }
}

}  // namespace puna
