// Causal attention over block tables, one pass with an online softmax.
//
// One call serves the query heads of one key head for some tokens of one sequence. Keys and values of a block lie so,
// for block_size B and head dimension D:
//
//   keys    [D][B] float32 or f16   | [D / 2][B][2] bf16: pairs of dimensions
//   values  [B][D] float32 or f16   | [B][D] bf16
//
// A tile is sixteen tokens: its scores come from one vector load a dimension (two dimensions for bf16), shared by all
// query heads of the group. Queries, scores and sums stay in float32. A token walks the tiles of its own sequence from the first visible one to itself, so its
// result depends on its position alone. Reads 4 D bytes a cached token in two-byte types, for 4 D multiply-adds a query head.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

constexpr int MAX_GROUP = 4;  // query heads served by one pass over the keys

template <int HEADS, CacheType CACHE>
static inline void tile_scores(const AttendArgs& a, const float* query, const uint8_t* block, int lane, VF* scores) {
  VF even[HEADS];
  VF odd[HEADS];
  for (int h = 0; h < HEADS; ++h) even[h] = odd[h] = zero();
  for (int d = 0; d < a.head_dim; d += 2) {
    VF first;
    VF second;
    if constexpr (CACHE == CacheType::bf16) {
      const uint16_t* keys = reinterpret_cast<const uint16_t*>(block) + (static_cast<size_t>(d) * a.block_size + 2 * lane);
      load_bf16_pairs(keys, first, second);
    } else if constexpr (CACHE == CacheType::f16) {
      const uint16_t* keys = reinterpret_cast<const uint16_t*>(block) + (static_cast<size_t>(d) * a.block_size + lane);
      first = load_half(keys);
      second = load_half(keys + a.block_size);
    } else {
      const float* keys = reinterpret_cast<const float*>(block) + (static_cast<size_t>(d) * a.block_size + lane);
      first = load(keys);
      second = load(keys + a.block_size);
    }
    for (int h = 0; h < HEADS; ++h) {
      even[h] = fma(first, set1(query[h * a.head_dim + d]), even[h]);
      odd[h] = fma(second, set1(query[h * a.head_dim + d + 1]), odd[h]);
    }
  }
  for (int h = 0; h < HEADS; ++h) scores[h] = add(even[h], odd[h]);
}

template <CacheType CACHE>
static inline VF load_value(const uint8_t* values, size_t at) {
  if constexpr (CACHE == CacheType::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(values) + at);
  if constexpr (CACHE == CacheType::f16) return load_half(reinterpret_cast<const uint16_t*>(values) + at);
  return load(reinterpret_cast<const float*>(values) + at);
}

template <int HEADS, CacheType CACHE>
static inline void add_values(const AttendArgs& a, const uint8_t* block, int lane, int low, int high,
                              const float* weights, float* sums) {
  const size_t keys_bytes = a.block_bytes / 2;
  for (int d = 0; d < a.head_dim; d += LANES) {
    VF sum[HEADS];
    for (int h = 0; h < HEADS; ++h) sum[h] = load(sums + h * a.head_dim + d);
    for (int t = low; t < high; ++t) {
      const size_t at = static_cast<size_t>(lane + t) * static_cast<size_t>(a.head_dim) + static_cast<size_t>(d);
      const VF value = load_value<CACHE>(block + keys_bytes, at);
      for (int h = 0; h < HEADS; ++h) sum[h] = fma(value, set1(weights[h * LANES + t]), sum[h]);
    }
    for (int h = 0; h < HEADS; ++h) store(sums + h * a.head_dim + d, sum[h]);
  }
}

template <int HEADS, CacheType CACHE>
static void attend_token(const AttendArgs& a, const float* query, float* out, int position) {
  float* sums = a.scratch;
  float* weights = a.scratch + HEADS * a.head_dim;
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(HEADS * a.head_dim));
  float peak[HEADS];
  float total[HEADS];
  for (int h = 0; h < HEADS; ++h) peak[h] = -__builtin_inff(), total[h] = 0;
  const int begin = a.window > 0 && position - a.window + 1 > 0 ? position - a.window + 1 : 0;
  for (int start = begin / LANES * LANES; start <= position; start += LANES) {
    const int lane = start % a.block_size;
    const uint8_t* block = a.head_pool + static_cast<size_t>(a.table[start / a.block_size]) * a.block_bytes;
    const int low = begin > start ? begin - start : 0;
    const int high = position - start + 1 < LANES ? position - start + 1 : LANES;
    VF scores[HEADS];
    tile_scores<HEADS, CACHE>(a, query, block, lane, scores);
    for (int h = 0; h < HEADS; ++h) {
      VF s = mul(scores[h], set1(a.scale));
      if (a.softcap > 0) {
        float lanes[LANES];
        store(lanes, s);
        for (float& v : lanes) v = a.softcap * __builtin_tanhf(v / a.softcap);
        s = load(lanes);
      }
      s = keep_lanes(s, low, high, -__builtin_inff());
      const float highest = reduce_max(s);
      if (highest > peak[h]) {
        const float shrink = __builtin_expf(peak[h] - highest);
        total[h] *= shrink;
        const VF factor = set1(shrink);
        for (int d = 0; d < a.head_dim; d += LANES) store(sums + h * a.head_dim + d, mul(load(sums + h * a.head_dim + d), factor));
        peak[h] = highest;
      }
      const VF weight = keep_lanes(exponential(sub(s, set1(peak[h]))), low, high, 0.0f);
      total[h] += reduce_add(weight);
      store(weights + h * LANES, weight);
    }
    add_values<HEADS, CACHE>(a, block, lane, low, high, weights, sums);
  }
  for (int h = 0; h < HEADS; ++h) {
    const VF inverse = set1(1.0f / total[h]);
    for (int d = 0; d < a.head_dim; d += LANES)
      store(out + h * a.head_dim + d, mul(load(sums + h * a.head_dim + d), inverse));
  }
}

template <CacheType CACHE>
static void attend_heads(const AttendArgs& a, const float* query, float* out, int position, int heads) {
  switch (heads) {
    case 1: return attend_token<1, CACHE>(a, query, out, position);
    case 2: return attend_token<2, CACHE>(a, query, out, position);
    case 3: return attend_token<3, CACHE>(a, query, out, position);
    default: return attend_token<4, CACHE>(a, query, out, position);
  }
}

static void attend(const AttendArgs& a) {
  for (int64_t t = 0; t < a.rows; ++t) {
    for (int head = 0; head < a.group; head += MAX_GROUP) {
      const int heads = a.group - head < MAX_GROUP ? a.group - head : MAX_GROUP;
      const float* query = a.query + t * a.query_stride + head * a.head_dim;
      float* out = a.out + t * a.query_stride + head * a.head_dim;
      switch (a.cache) {
        case CacheType::f32: attend_heads<CacheType::f32>(a, query, out, a.positions[t], heads); break;
        case CacheType::bf16: attend_heads<CacheType::bf16>(a, query, out, a.positions[t], heads); break;
        case CacheType::f16: attend_heads<CacheType::f16>(a, query, out, a.positions[t], heads); break;
      }
    }
  }
}

}  // namespace puna::PUNA_NS
