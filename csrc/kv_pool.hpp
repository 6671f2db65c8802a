// The pool of keys and values of all layers, and the tier beside it: where a block lies, what is written to it in a
// step, and how blocks are copied and swapped.
//
// It knows blocks, tables and positions. It does not know which blocks are free (puna/sched/block_pool.py does), nor
// how attention reads them (attention.hpp); bytes of one key head are those of cache_layout.hpp. All layers' shares of a
// block lie side by side, so that memory is touched as blocks are used, and a block is copied in one piece:
//
//   block 0: layer 0: key head 0 | key head 1 | ..., layer 1: key head 0 | ...;  block 1: layer 0: ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "page_toucher.hpp"
#include "thread_pool.hpp"

namespace puna {

constexpr int64_t MAX_HEAD_DIM = 1024;

struct KVLayer {
  int64_t kv_heads;
  int64_t head_dim;
};

struct PoolConfig {
  int64_t num_blocks;
  int64_t tier_blocks;
  int block_size;
  CacheType cache;
  bool tiles;  // bf16 may be laid out for tiles
  int64_t touched_ahead;  // bytes beyond the last block in use that are touched while the machine is idle
};

// Where the new tokens of a step stand: sequence r owns tokens query_start[r] .. query_start[r + 1] - 1, at consecutive
// positions; position p of it lies in block tables[r * table_width + p / block_size].
struct StepTables {
  int64_t tokens;
  int64_t sequences;
  int64_t table_width;
  const int32_t* positions;
  const int32_t* query_start;
  const int32_t* tables;
};

class KVPool {
 public:
  KVPool() = default;
  // Throws std::invalid_argument for sizes that the kernels do not know.
  KVPool(std::vector<KVLayer> layers, PoolConfig config);

  const std::vector<KVLayer>& layers() const { return layers_; }
  const PoolConfig& config() const { return config_; }

  // Block 0 of a key head; the others follow, block_stride of the layout apart.
  const uint8_t* head(size_t layer, int64_t kv_head) const { return block(layer, kv_head, 0); }
  const CacheLayout& layout(size_t layer) const { return shares_[layer].layout; }

  // One move (kind, source, destination) of puna/kernels/batch.py, in all layers.
  void move(const int32_t* move);

  // Writes the step's keys and values [tokens, kv_heads * head_dim] of one layer into the blocks of their positions.
  void store(const KernelTable& kernels, ThreadPool& threads, const StepTables& step, size_t layer, const float* key,
             const float* value);

 private:
  struct Share {
    CacheLayout layout;  // of one head
    size_t at;           // offset of the layer's first head within a block
  };
  uint8_t* block(size_t layer, int64_t kv_head, int64_t id) const;
  void touch_ahead(const StepTables& step);
  std::vector<KVLayer> layers_;
  PoolConfig config_{};
  std::vector<Share> shares_;
  size_t block_bytes_ = 0;  // of all layers
  Region pool_;
  Region tier_;
  std::unique_ptr<PageToucher> toucher_;
  std::vector<int32_t> runs_;  // scratch of `store`
};

}  // namespace puna
