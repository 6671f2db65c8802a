// The two products of attention, in registers: scores of queries and keys, and sums of values by weights.
//
// A tile is up to ROWS rows (tokens times heads) by up to WIDE vectors. Every sum belongs to one lane and runs over its
// dimensions, or its keys, in ascending order, so that neither the tile a row falls into nor the instruction set changes
// a bit. A load and a conversion of the cache serves all rows of the tile: 2 N W operations for W loads and N broadcasts.
#pragma once

#include "attention_ranges.hpp"
#include "simd_cache.hpp"

namespace puna::PUNA_NS {

constexpr int ROWS = 6;
#if PUNA_PATH == 512
constexpr int WIDE = 4;  // 24 sums, 4 vectors and a broadcast in 32 registers
#else
constexpr int WIDE = 1;  // 12 sums, 2 halves and a broadcast in 16 registers
#endif

// Keys of a range whose values are added up, and whether others of it have been.
struct ValueSpan {
  int first;
  int last;
  bool begun;
  int dim;
  size_t row_bytes;
};

// Sixteen keys' dimension d, which is even (0) or odd (1) as PARITY says.
template <CacheType CACHE, int PARITY>
static inline VF load_keys(const uint8_t* tile, int d) {
  if constexpr (CACHE == CacheType::f32) return load(reinterpret_cast<const float*>(tile) + d * KEY_TILE);
  if constexpr (CACHE == CacheType::f16) return load_half(reinterpret_cast<const uint16_t*>(tile) + d * KEY_TILE);
  if constexpr (CACHE == CacheType::int8) return load_int8(reinterpret_cast<const int8_t*>(tile) + d * KEY_TILE);
  return load_bf16_of_pair<PARITY>(reinterpret_cast<const uint16_t*>(tile) + (d - PARITY) * KEY_TILE);
}

// Sixteen dimensions, from d on, of one token's values.
template <CacheType CACHE>
static inline VF load_values(const uint8_t* row, int d) {
  if constexpr (CACHE == CacheType::f32) return load(reinterpret_cast<const float*>(row) + d);
  if constexpr (CACHE == CacheType::f16) return load_half(reinterpret_cast<const uint16_t*>(row) + d);
  if constexpr (CACHE == CacheType::int8) return load_int8(reinterpret_cast<const int8_t*>(row) + d);
  return load_bf16(reinterpret_cast<const uint16_t*>(row) + d);
}

// scores[r][16 w + lane] = query[r] . key of that lane, for N rows and W tiles.
template <CacheType CACHE, int N, int W>
static void score_tile(const RangeTiles& tiles, int first, int dim, const float* query, float* scores) {
  constexpr int DIMENSION_BYTES = KEY_TILE * (CACHE == CacheType::f32 ? 4 : CACHE == CacheType::int8 ? 1 : 2);
  VF sum[N][W];
  const uint8_t* tile[W];
  const uint8_t* next[W];
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w) {
    tile[w] = tiles.keys[first + w];
    next[w] = tiles.next_keys[first + w];
#pragma GCC unroll 8
    for (int r = 0; r < N; ++r) sum[r][w] = zero();
  }
  const auto add_dimension = [&]<int PARITY>(int d) __attribute__((always_inline)) {
    VF key[W];
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) key[w] = load_keys<CACHE, PARITY>(tile[w], d);
#pragma GCC unroll 8
    for (int r = 0; r < N; ++r) {
      const VF q = set1(query[r * dim + d]);
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) sum[r][w] = fma(key[w], q, sum[r][w]);
    }
  };
  for (int d = 0; d < dim; d += 2) {
    if (d % (FETCH_BYTES / DIMENSION_BYTES) == 0) {
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) fetch(next[w] + d * DIMENSION_BYTES);
    }
    add_dimension.template operator()<0>(d);
    add_dimension.template operator()<1>(d + 1);
  }
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r)
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) store(scores + r * ATTEND_RANGE + w * KEY_TILE, sum[r][w]);
}

// sums[r][d ..] (+)= the values of keys low[r] .. high[r] - 1, as far as they lie within first .. last - 1, by their
// weights, for N rows and 16 W dimensions.
template <CacheType CACHE, int N, int W>
static void value_tile(const RangeTiles& tiles, const ValueSpan& span, int d, const float* weights, const int* low,
                       const int* high, float* sums) {
  const int dim = span.dim;
  const size_t row_bytes = span.row_bytes;
  int least = span.last, common_low = span.first, common_high = span.last, most = span.first;
  for (int r = 0; r < N; ++r) {
    least = low[r] < least ? low[r] : least;
    common_low = low[r] > common_low ? low[r] : common_low;
    common_high = high[r] < common_high ? high[r] : common_high;
    most = high[r] > most ? high[r] : most;
  }
  least = least > span.first ? least : span.first;
  most = most < span.last ? most : span.last;
  if (common_high < common_low) common_low = common_high = most;
  VF sum[N][W];
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r)
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) sum[r][w] = span.begun ? load(sums + r * dim + d + w * LANES) : zero();
  const auto add_keys = [&]<bool ALL>(int t, int end) __attribute__((always_inline)) {
    while (t < end) {
      const int stop = end < (t / KEY_TILE + 1) * KEY_TILE ? end : (t / KEY_TILE + 1) * KEY_TILE;
      const uint8_t* row = tiles.values[t / KEY_TILE] + static_cast<size_t>(t % KEY_TILE) * row_bytes;
      const uint8_t* next = tiles.next_values[t / KEY_TILE] + static_cast<size_t>(t % KEY_TILE) * row_bytes + d;
      for (; t < stop; ++t, row += row_bytes, next += row_bytes) {
        fetch(next);
        VF value[W];
#pragma GCC unroll 8
        for (int w = 0; w < W; ++w) value[w] = load_values<CACHE>(row, d + w * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) {
          if (!ALL && (t < low[r] || t >= high[r])) continue;
          const VF weight = set1(weights[r * ATTEND_RANGE + t]);
#pragma GCC unroll 8
          for (int w = 0; w < W; ++w) sum[r][w] = fma(value[w], weight, sum[r][w]);
        }
      }
    }
  };
  add_keys.template operator()<false>(least, common_low);
  add_keys.template operator()<true>(common_low, common_high);
  add_keys.template operator()<false>(common_high, most);
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r)
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) store(sums + r * dim + d + w * LANES, sum[r][w]);
}

template <CacheType CACHE, int W>
static void score_rows(int rows, const RangeTiles& tiles, int first, int dim, const float* query, float* scores) {
  switch (rows) {
    case 1: return score_tile<CACHE, 1, W>(tiles, first, dim, query, scores);
    case 2: return score_tile<CACHE, 2, W>(tiles, first, dim, query, scores);
    case 3: return score_tile<CACHE, 3, W>(tiles, first, dim, query, scores);
    case 4: return score_tile<CACHE, 4, W>(tiles, first, dim, query, scores);
    case 5: return score_tile<CACHE, 5, W>(tiles, first, dim, query, scores);
    default: return score_tile<CACHE, ROWS, W>(tiles, first, dim, query, scores);
  }
}

template <CacheType CACHE, int W>
static void value_rows(int rows, const RangeTiles& tiles, const ValueSpan& span, int d, const float* weights,
                       const int* low, const int* high, float* sums) {
  switch (rows) {
    case 1: return value_tile<CACHE, 1, W>(tiles, span, d, weights, low, high, sums);
    case 2: return value_tile<CACHE, 2, W>(tiles, span, d, weights, low, high, sums);
    case 3: return value_tile<CACHE, 3, W>(tiles, span, d, weights, low, high, sums);
    case 4: return value_tile<CACHE, 4, W>(tiles, span, d, weights, low, high, sums);
    case 5: return value_tile<CACHE, 5, W>(tiles, span, d, weights, low, high, sums);
    default: return value_tile<CACHE, ROWS, W>(tiles, span, d, weights, low, high, sums);
  }
}

}  // namespace puna::PUNA_NS
