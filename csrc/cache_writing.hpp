// Writes keys and values of up to sixteen neighbouring tokens into a block (cache_layout.hpp).
//
// A token's values are one row. Its keys are a column, so sixteen tokens are transposed in registers and written whole
// vectors at a time; a token alone, as in decoding, has to touch every vector of its tile. A number that is too large
// for f16 becomes the largest one; a NaN stays a NaN. In int8 each token and head has one scale for its keys and one for
// its values, largest magnitude / 127; where a value is not finite the scale is NaN, and so is all that is read.
#pragma once

#include "kernels.hpp"
#include "simd_cache.hpp"

#include <type_traits>

namespace puna::PUNA_NS {

template <CacheType CACHE>
using Element = std::conditional_t<CACHE == CacheType::f32, float, std::conditional_t<CACHE == CacheType::int8, int8_t, uint16_t>>;

template <CacheType CACHE>
static inline void write_lanes(Element<CACHE>* to, VF x) {
  if constexpr (CACHE == CacheType::f32) store(to, x);
  if constexpr (CACHE == CacheType::f16) store_half(to, x);
  if constexpr (CACHE == CacheType::bf16) store_bf16(to, x);
  if constexpr (CACHE == CacheType::int8) store_int8(to, x);
}

// A row of integers: value = scale * integer, integer = round(value * inverse).
struct RowScale {
  float scale;
  float inverse;
};

static inline RowScale row_scale(const float* x, int dim) {
  VF most = zero(), check = zero();
  for (int d = 0; d < dim; d += LANES) {
    const VF v = load(x + d);
    most = max(most, absolute(v));
    check = add(check, sub(v, v));  // 0, or NaN where a value is not finite
  }
  if (reduce_add(check) != 0) return {__builtin_nanf(""), 0.0f};
  const float magnitude = largest(most);
  if (magnitude < 1e-30f) return {0.0f, 0.0f};
  return {magnitude / 127.0f, 127.0f / magnitude};
}

// Row x of a token, ready to be written: as it is, or in whole numbers.
template <CacheType CACHE>
static inline VF scaled_row(const float* x, int d, RowScale row) {
  if constexpr (CACHE == CacheType::int8) return row.inverse == 0 ? zero() : round_even(mul(load(x + d), set1(row.inverse)));
  return load(x + d);
}

// Where in its tile the element of dimension d and of the token at `lane` lies.
template <CacheType CACHE>
static inline int key_offset(int d, int lane) {
  return CACHE == CacheType::bf16 ? (d / 2 * KEY_TILE + lane) * 2 + d % 2 : d * KEY_TILE + lane;
}

template <CacheType CACHE>
static inline void write_key_column(const float* key, int dim, Element<CACHE>* tile, int lane, RowScale row) {
  for (int d = 0; d < dim; d += LANES) {
    Element<CACHE> elements[LANES];
    write_lanes<CACHE>(elements, scaled_row<CACHE>(key, d, row));
    for (int i = 0; i < LANES; ++i) tile[key_offset<CACHE>(d + i, lane)] = elements[i];
  }
}

// Keys of `count` tokens from `lane` of the tile on.
template <CacheType CACHE>
static inline void write_key_tile(const StoreArgs& a, Element<CACHE>* tile, int lane, const RowScale* rows) {
  constexpr int SPAN = CACHE == CacheType::bf16 ? 2 : 1;  // dimensions that lie side by side
  for (int d = 0; d < a.layout.head_dim; d += LANES) {
    VF column[LANES];
    for (int i = 0; i < LANES; ++i) {
      const int t = i - lane;
      column[i] = t >= 0 && t < a.count ? scaled_row<CACHE>(a.key + t * a.stride, d, rows[t]) : zero();
    }
    transpose(column);
    for (int i = 0; i < LANES; i += SPAN) {
      Element<CACHE> elements[SPAN * KEY_TILE];
      if constexpr (CACHE == CacheType::bf16)
        store_bf16_pairs(elements, column[i], column[i + 1]);
      else
        write_lanes<CACHE>(elements, column[i]);
      Element<CACHE>* to = tile + (d + i) * KEY_TILE;
      if (a.count == KEY_TILE)
        std::memcpy(to, elements, sizeof elements);
      else
        std::memcpy(to + SPAN * lane, elements + SPAN * lane, sizeof(Element<CACHE>) * static_cast<size_t>(SPAN * a.count));
    }
  }
}

// Values of neighbouring tokens as pairs [B / 2][D][2]; of a pair of which one token is written the other one stays.
static inline void write_value_pairs(const StoreArgs& a) {
  const int dim = a.layout.head_dim;
  for (int t = 0; t < a.count;) {
    const int slot = a.slot + t;
    uint16_t* pair = reinterpret_cast<uint16_t*>(a.block + a.layout.value_row(slot / 2 * 2));
    const float* x = a.value + t * a.stride;
    if (slot % 2 == 0 && t + 1 < a.count) {
      for (int d = 0; d < dim; d += LANES) store_bf16_pairs(pair + 2 * d, load(x + d), load(x + a.stride + d));
      t += 2;
      continue;
    }
    for (int d = 0; d < dim; d += LANES) {
      if (slot % 2 == 0)
        store_bf16_pairs(pair + 2 * d, load(x + d), load_bf16_of_pair<1>(pair + 2 * d));
      else
        store_bf16_pairs(pair + 2 * d, load_bf16_of_pair<0>(pair + 2 * d), load(x + d));
    }
    ++t;
  }
}

template <CacheType CACHE>
static void store_tokens(const StoreArgs& a) {
  const CacheLayout& layout = a.layout;
  RowScale keys[KEY_TILE] = {}, values[KEY_TILE] = {};
  if constexpr (CACHE == CacheType::int8) {
    for (int t = 0; t < a.count; ++t) {
      keys[t] = row_scale(a.key + t * a.stride, layout.head_dim);
      values[t] = row_scale(a.value + t * a.stride, layout.head_dim);
      reinterpret_cast<float*>(a.block + layout.key_scale(a.slot))[t] = keys[t].scale;
      reinterpret_cast<float*>(a.block + layout.value_scale(a.slot))[t] = values[t].scale;
    }
  }
  Element<CACHE>* tile = reinterpret_cast<Element<CACHE>*>(a.block + layout.key_tile(a.slot));
  if (a.count == 1)
    write_key_column<CACHE>(a.key, layout.head_dim, tile, a.slot % KEY_TILE, keys[0]);
  else
    write_key_tile<CACHE>(a, tile, a.slot % KEY_TILE, keys);
  if (layout.tiles) return write_value_pairs(a);
  Element<CACHE>* row = reinterpret_cast<Element<CACHE>*>(a.block + layout.value_row(a.slot));
  for (int t = 0; t < a.count; ++t)
    for (int d = 0; d < layout.head_dim; d += LANES)
      write_lanes<CACHE>(row + t * layout.head_dim + d, scaled_row<CACHE>(a.value + t * a.stride, d, values[t]));
}

static void store_cache(const StoreArgs& a) {
  switch (a.layout.type) {
    case CacheType::f32: return store_tokens<CacheType::f32>(a);
    case CacheType::bf16: return store_tokens<CacheType::bf16>(a);
    case CacheType::f16: return store_tokens<CacheType::f16>(a);
    case CacheType::int8: return store_tokens<CacheType::int8>(a);
  }
}

}  // namespace puna::PUNA_NS
