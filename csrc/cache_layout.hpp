// How keys and values of one block and one key head lie in memory, for block size B and head dimension D:
//
//   keys     B / 16 tiles of sixteen tokens, each  [D][16]         f32, f16, int8: a dimension of sixteen tokens in one load
//                                                  [D / 2][16][2]  bf16: two dimensions in one load of full width
//   values   [B][D]: a token's values one after the other; for tiles (bf16) [B / 2][D][2]: two tokens in one load
//   scales   int8 only: [B] float32 of the keys, then [B] of the values; a value is scale * integer
//
// Knows sizes and offsets only. attention.hpp reads these bytes, cache_writing.hpp writes them; blocks are moved whole.
#pragma once

#include <cstddef>
#include <cstdint>

namespace puna {

enum class CacheType { f32, bf16, f16, int8 };

constexpr int KEY_TILE = 16;  // tokens whose keys lie side by side

// Offsets within a block are in bytes.
struct CacheLayout {
  CacheType type;
  bool tiles;  // bf16 whose values lie in pairs of tokens, as attention on tiles reads them
  int block_size;
  int head_dim;
  int element_bytes;
  size_t key_tile_bytes;
  size_t value_row_bytes;
  size_t values_at;
  size_t key_scales_at;
  size_t value_scales_at;
  size_t block_bytes;
  size_t block_stride;  // from a block of a key head to the next: block_bytes, or more where others lie between them

  size_t key_tile(int slot) const { return static_cast<size_t>(slot / KEY_TILE) * key_tile_bytes; }
  // Of a token; with `tiles` of the pair that begins with an even one.
  size_t value_row(int slot) const { return values_at + static_cast<size_t>(slot) * value_row_bytes; }
  size_t key_scale(int slot) const { return key_scales_at + sizeof(float) * static_cast<size_t>(slot); }
  size_t value_scale(int slot) const { return value_scales_at + sizeof(float) * static_cast<size_t>(slot); }
};

// `tiles`: whether the path that reads it multiplies bf16 on tiles, 32 dimensions at a time.
inline CacheLayout cache_layout(CacheType type, int block_size, int head_dim, bool tiles) {
  CacheLayout l{};
  l.type = type;
  l.tiles = tiles && type == CacheType::bf16 && head_dim % 32 == 0;
  l.block_size = block_size;
  l.head_dim = head_dim;
  l.element_bytes = type == CacheType::f32 ? 4 : type == CacheType::int8 ? 1 : 2;
  l.value_row_bytes = static_cast<size_t>(head_dim * l.element_bytes);
  l.key_tile_bytes = l.value_row_bytes * KEY_TILE;
  l.values_at = l.value_row_bytes * static_cast<size_t>(block_size);
  l.key_scales_at = 2 * l.values_at;
  l.value_scales_at = l.key_scales_at + sizeof(float) * static_cast<size_t>(block_size);
  l.block_bytes = l.key_scales_at + (type == CacheType::int8 ? 2 * sizeof(float) * static_cast<size_t>(block_size) : 0);
  l.block_stride = l.block_bytes;
  return l;
}

}  // namespace puna
