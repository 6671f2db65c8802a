// What attention leaves of a range of keys for each row, how ranges are merged in their order, and where a range's keys
// and values lie.
//
// Knows block tables and partial results; it does not know how a score or a weight is computed, and so serves every
// kernel of attention: attention.hpp in float32, attention_amx.cpp on tiles of bf16.
#pragma once

#include "elementary.hpp"
#include "kernels.hpp"

namespace puna::PUNA_NS {

constexpr int RANGE_TILES = ATTEND_RANGE / KEY_TILE;
constexpr float LOG2_E = 1.44269504f;  // scores are kept as powers of two

constexpr int FETCH_BYTES = 64;

static inline void fetch(const uint8_t* line) { __builtin_prefetch(line, 0, 2); }

// Of each row: weighted sums of values, weights summed in sixteen lanes, the highest score.
struct Gathered {
  float* sums;
  float* totals;
  float* peaks;
};

static inline Gathered gathered_at(float* at, int rows, int dim) {
  float* totals = at + static_cast<int64_t>(rows) * dim;
  return {at, totals, totals + static_cast<int64_t>(rows) * LANES};
}

static inline void begin_gathering(const Gathered& g, int rows, int dim) {
  std::memset(g.sums, 0, sizeof(float) * static_cast<size_t>(rows * dim));
  std::memset(g.totals, 0, sizeof(float) * static_cast<size_t>(rows * LANES));
  for (int r = 0; r < (rows + LANES - 1) / LANES * LANES; ++r) g.peaks[r] = -__builtin_inff();
}

// Where the tiles of one range lie. While one is worked on, the same place of the tile that `next_keys` and `next_values`
// name is fetched towards the processor, which sees no stream from one block to the next and would only begin to fetch when
// it waits; and spread over the work, because a burst of fetches would wait itself.
struct RangeTiles {
  const uint8_t* keys[RANGE_TILES];
  const uint8_t* values[RANGE_TILES];
  const float* key_scales[RANGE_TILES];  // int8 only, as the next
  const float* value_scales[RANGE_TILES];
  const uint8_t* next_keys[RANGE_TILES];
  const uint8_t* next_values[RANGE_TILES];
};

// Those of the range, and of what comes after it; where nothing does, a tile is its own successor.
static inline RangeTiles find_tiles(const AttendArgs& a, int start, int first_tile, int last_tile, const KeySpan& next) {
  const CacheLayout& layout = a.layout;
  RangeTiles tiles{};
  for (int i = first_tile; i < last_tile; ++i) {
    const int position = start + i * KEY_TILE, slot = position % layout.block_size;
    const uint8_t* block = a.head_pool + static_cast<size_t>(a.table[position / layout.block_size]) * layout.block_stride;
    tiles.keys[i] = tiles.next_keys[i] = block + layout.key_tile(slot);
    tiles.values[i] = tiles.next_values[i] = block + layout.value_row(slot);
    if (layout.type != CacheType::int8) continue;
    tiles.key_scales[i] = reinterpret_cast<const float*>(block + layout.key_scale(slot));
    tiles.value_scales[i] = reinterpret_cast<const float*>(block + layout.value_scale(slot));
  }
  for (int i = first_tile, p = next.begin / KEY_TILE * KEY_TILE; i < last_tile && p < next.end; ++i, p += KEY_TILE) {
    const int slot = p % layout.block_size;
    const uint8_t* block = next.head_pool + static_cast<size_t>(next.table[p / layout.block_size]) * layout.block_stride;
    tiles.next_keys[i] = block + layout.key_tile(slot);
    tiles.next_values[i] = block + layout.value_row(slot);
  }
  return tiles;
}

// What was gathered and a later range, each brought to the higher peak. Of two peaks one is the higher, so one factor is
// exactly 1. A row that saw nothing in the range has the peak -inf there, and keeps what it has. Sums of the range lie
// `range_row` floats apart.
static inline void merge_range(const Gathered& own, const Gathered& range, int rows, int dim, int64_t range_row) {
  for (int first = 0; first < rows; first += LANES) {
    const int count = rows - first < LANES ? rows - first : LANES;
    float shrink_own[LANES], shrink_range[LANES], peaks[LANES];
    const VF mine = load(own.peaks + first), its = load(range.peaks + first), higher = max(mine, its);
    store(shrink_own, softmax_weight(sub(mine, higher)));
    store(shrink_range, softmax_weight(sub(its, higher)));
    store(peaks, higher);
    for (int i = 0; i < count; ++i) {
      const int64_t r = first + i;
      if (range.peaks[r] == -__builtin_inff()) continue;
      const VF a = set1(shrink_own[i]), b = set1(shrink_range[i]);
      float* total = own.totals + r * LANES;
      store(total, fma(load(range.totals + r * LANES), b, mul(load(total), a)));
      float* sums = own.sums + r * dim;
      const float* more = range.sums + r * range_row;
      for (int d = 0; d < dim; d += LANES) store(sums + d, fma(load(more + d), b, mul(load(sums + d), a)));
    }
    std::memcpy(own.peaks + first, peaks, sizeof(float) * static_cast<size_t>(count));
  }
}

// The first range of the span after range `n`: what is read next.
static inline KeySpan span_after(const AttendArgs& a, int n) {
  if (n + 1 >= a.last_range) return a.next;
  const int begin = (n + 1) * ATTEND_RANGE, end = a.position + a.tokens;
  return {a.table, a.head_pool, begin, end < begin + ATTEND_RANGE ? end : begin + ATTEND_RANGE};
}

static inline Gathered partial_at(const AttendArgs& a, int range) {
  const int rows = a.tokens * a.group, dim = a.layout.head_dim;
  return gathered_at(a.partials + (range - a.first_range) * attend_partial_floats(rows, dim), rows, dim);
}

static inline void write_out(const AttendArgs& a, const Gathered& own) {
  const int dim = a.layout.head_dim;
  for (int r = 0; r < a.tokens * a.group; ++r) {
    const VF inverse = set1(1.0f / reduce_add(load(own.totals + r * LANES)));
    float* out = a.out + r / a.group * a.query_stride + r % a.group * dim;
    for (int d = 0; d < dim; d += LANES) store(out + d, mul(load(own.sums + static_cast<int64_t>(r) * dim + d), inverse));
  }
}

// What each token has gathered, between the arrays of a tile of tokens and a record a token: taken up from `before`, or
// begun; left in `after`, or divided into `out`.
static inline void take_up(const AttendArgs& a, const Gathered& own) {
  const int dim = a.layout.head_dim, group = a.group;
  const size_t floats = sizeof(float);
  begin_gathering(own, a.tokens * group, dim);
  for (int t = 0; a.before && t < a.tokens; ++t) {
    const float* record = a.before + t * attend_partial_floats(group, dim);
    std::memcpy(own.sums + static_cast<int64_t>(t) * group * dim, record, floats * static_cast<size_t>(group * dim));
    std::memcpy(own.totals + t * group * LANES, record + group * dim, floats * static_cast<size_t>(group * LANES));
    std::memcpy(own.peaks + t * group, record + group * (dim + LANES), floats * static_cast<size_t>(group));
  }
}

static inline void leave(const AttendArgs& a, const Gathered& own) {
  if (!a.after) return write_out(a, own);
  const int dim = a.layout.head_dim, group = a.group;
  const size_t floats = sizeof(float);
  for (int t = 0; t < a.tokens; ++t) {
    float* record = a.after + t * attend_partial_floats(group, dim);
    std::memcpy(record, own.sums + static_cast<int64_t>(t) * group * dim, floats * static_cast<size_t>(group * dim));
    std::memcpy(record + group * dim, own.totals + t * group * LANES, floats * static_cast<size_t>(group * LANES));
    std::memcpy(record + group * (dim + LANES), own.peaks + t * group, floats * static_cast<size_t>(group));
  }
}

}  // namespace puna::PUNA_NS
