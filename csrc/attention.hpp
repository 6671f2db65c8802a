// Causal attention over block tables: softmax of scores range by range, ranges merged in the order of their positions.
//
// The keys of a sequence are cut into ranges of 128 from position 0 on. Of each range a row takes scores, the highest of
// them, weights beside that one, their sum and the weighted sum of values; what it has gathered so far and the range are
// then rescaled to the higher of both peaks and added. Neither the cut nor the order knows which tokens are computed
// together or who computes a range: a token alone, in a chunk of a prompt, or with its ranges on several threads
// (`partials`, then attend_merge) is the same arithmetic, and so the same bits. Everything is float32.
//
// Bytes and operations a range and key head: 512 D bytes in two-byte types, 512 D operations a row. With few rows the
// cache is read straight into registers; with many it is widened once into scratch that the tiles then share.
#pragma once

#include "attention_tiles.hpp"
#include "elementary.hpp"
#include "kernels.hpp"

#include <utility>

namespace puna::PUNA_NS {

constexpr int WIDENED_FROM = 2 * ROWS + 1;  // rows from which the cache is widened before it is used
constexpr int WIDENED_TILES = 4;            // at a time: with head dimension 64, a third of the nearest cache

struct AttendScratch {
  float* query;   // [rows][head_dim], scaled
  float* scores;  // [rows][ATTEND_RANGE], then weights
  Gathered own;
  Gathered range;
  int* low;  // visible keys of the range: low .. high - 1
  int* high;
  float* widened;  // [WIDENED_TILES][16][head_dim], keys or values
};

static inline AttendScratch cut_scratch(float* at, int rows, int dim) {
  const auto take = [&](int64_t floats) { return std::exchange(at, at + floats); };
  const int64_t padded = (rows + LANES - 1) / LANES * LANES;
  AttendScratch s{};
  s.query = take(static_cast<int64_t>(rows) * dim);
  s.scores = take(static_cast<int64_t>(rows) * ATTEND_RANGE);
  s.own = gathered_at(take(attend_partial_floats(rows, dim)), rows, dim);
  s.range = gathered_at(take(attend_partial_floats(rows, dim)), rows, dim);
  s.low = reinterpret_cast<int*>(take(padded));
  s.high = reinterpret_cast<int*>(take(padded));
  s.widened = take(static_cast<int64_t>(ATTEND_RANGE) / 2 * dim);
  return s;
}

// Which keys of the range that starts at `start` each row sees; returns whether any row sees one, and the outermost.
static inline bool find_visible(const AttendArgs& a, int start, const AttendScratch& s, int& least, int& most) {
  least = ATTEND_RANGE;
  most = 0;
  for (int t = 0; t < a.tokens; ++t) {
    const int end = a.position + t + 1 - start, begin = a.window > 0 ? end - a.window : 0;
    const int low = begin < 0 ? 0 : begin, high = end > ATTEND_RANGE ? ATTEND_RANGE : end;
    for (int h = 0; h < a.group; ++h) {
      s.low[t * a.group + h] = low;
      s.high[t * a.group + h] = high > low ? high : low;
    }
    if (high <= low) continue;
    least = low < least ? low : least;
    most = high > most ? high : most;
  }
  return most > least;
}

// Float32 copies of some tiles' keys or values, which then stand for them. Scales stay where they are.
template <CacheType CACHE>
static void widen_keys(RangeTiles& tiles, const CacheLayout& layout, int first, int last, float* to) {
  for (int i = first; i < last; ++i, to += KEY_TILE * layout.head_dim) {
    for (int d = 0; d < layout.head_dim; d += 2) {
      store(to + d * KEY_TILE, load_keys<CACHE, 0>(tiles.keys[i], d));
      store(to + (d + 1) * KEY_TILE, load_keys<CACHE, 1>(tiles.keys[i], d + 1));
    }
    for (size_t at = 0; at < layout.key_tile_bytes; at += FETCH_BYTES) fetch(tiles.next_keys[i] + at);
    tiles.keys[i] = tiles.next_keys[i] = reinterpret_cast<const uint8_t*>(to);
  }
}

template <CacheType CACHE>
static void widen_values(RangeTiles& tiles, const CacheLayout& layout, int first, int last, float* to) {
  for (int i = first; i < last; ++i, to += KEY_TILE * layout.head_dim) {
    for (int t = 0; t < KEY_TILE; ++t)
      for (int d = 0; d < layout.head_dim; d += LANES)
        store(to + t * layout.head_dim + d, load_values<CACHE>(tiles.values[i] + static_cast<size_t>(t) * layout.value_row_bytes, d));
    for (size_t at = 0; at < layout.key_tile_bytes; at += FETCH_BYTES) fetch(tiles.next_values[i] + at);
    tiles.values[i] = tiles.next_values[i] = reinterpret_cast<const uint8_t*>(to);
  }
}

// Turns a row's scores into weights beside its highest one, and leaves that one and the weights' sum.
template <bool SCALED>
static inline void weigh_row(const AttendArgs& a, const RangeTiles& tiles, float* scores, int low, int high,
                             float& peak, float* total) {
  VF highest = set1(-__builtin_inff());
  const int first = low / KEY_TILE, last = (high + KEY_TILE - 1) / KEY_TILE;
  const int whole_first = (low + KEY_TILE - 1) / KEY_TILE, whole_last = high / KEY_TILE;  // tiles of which all is visible
  const auto visible = [&](int i, VF x, float other) {
    if (i >= whole_first && i < whole_last) return x;
    const int from = low - i * KEY_TILE, to = high - i * KEY_TILE;
    return keep_lanes(x, from < 0 ? 0 : from, to > KEY_TILE ? KEY_TILE : to, other);
  };
  const float cap = a.softcap * LOG2_E;
  for (int i = first; i < last; ++i) {
    VF x = load(scores + i * KEY_TILE);
    if constexpr (SCALED) x = mul(x, load(tiles.key_scales[i]));
    if (a.softcap > 0) x = mul(set1(cap), hyperbolic_tangent(mul(x, set1(1.0f / cap))));
    x = visible(i, x, -__builtin_inff());
    store(scores + i * KEY_TILE, x);
    highest = max(highest, x);
  }
  peak = largest(highest);
  // Keys of which every score is -inf weigh nothing beside any finite score, and NaN if that is all a row sees: 0 / 0.
  // Their peak is the lowest number, for -inf says that the row saw no key. A score of NaN is a weight of NaN anyhow.
  if (peak == -__builtin_inff()) peak = -__FLT_MAX__;
  VF sum = zero();
  for (int i = first; i < last; ++i) {
    VF weight = softmax_weight(sub(load(scores + i * KEY_TILE), set1(peak)));
    weight = visible(i, weight, 0.0f);
    sum = add(sum, weight);
    if constexpr (SCALED) weight = mul(weight, load(tiles.value_scales[i]));
    store(scores + i * KEY_TILE, weight);
  }
  store(total, sum);
}

template <CacheType CACHE, CacheType SOURCE>
static void attend_tiles(const AttendArgs& a, RangeTiles& tiles, int least, int most, const AttendScratch& s,
                         const Gathered& range) {
  constexpr bool WIDENED = CACHE != SOURCE;
  constexpr int STEP = WIDENED ? WIDENED_TILES : RANGE_TILES;
  const int rows = a.tokens * a.group, dim = a.layout.head_dim;
  const int groups = (rows + ROWS - 1) / ROWS;
  const auto first_row = [&](int g) { return static_cast<int>(static_cast<int64_t>(rows) * g / groups); };
  const int first_tile = least / KEY_TILE, last_tile = (most + KEY_TILE - 1) / KEY_TILE;
  for (int from = first_tile; from < last_tile; from += STEP) {
    const int to = from + STEP < last_tile ? from + STEP : last_tile;
    if constexpr (WIDENED) widen_keys<SOURCE>(tiles, a.layout, from, to, s.widened);
    for (int i = from; i < to;) {
      const int width = to - i >= WIDE ? WIDE : 1;
      for (int g = 0; g < groups; ++g) {
        const int r = first_row(g), n = first_row(g + 1) - r;
        const float* query = s.query + static_cast<int64_t>(r) * dim;
        float* scores = s.scores + static_cast<int64_t>(r) * ATTEND_RANGE + i * KEY_TILE;
        if (width == WIDE)
          score_rows<CACHE, WIDE>(n, tiles, i, dim, query, scores);
        else
          score_rows<CACHE, 1>(n, tiles, i, dim, query, scores);
      }
      i += width;
    }
  }
  for (int r = 0; r < rows; ++r) {
    float* total = range.totals + r * LANES;
    if (s.high[r] > s.low[r]) {
      weigh_row<SOURCE == CacheType::int8>(a, tiles, s.scores + static_cast<int64_t>(r) * ATTEND_RANGE, s.low[r],
                                           s.high[r], range.peaks[r], total);
    } else {
      range.peaks[r] = -__builtin_inff();
      store(total, zero());
    }
  }
  for (int from = first_tile; from < last_tile; from += STEP) {
    const int to = from + STEP < last_tile ? from + STEP : last_tile;
    if constexpr (WIDENED) widen_values<SOURCE>(tiles, a.layout, from, to, s.widened);
    const ValueSpan span{from * KEY_TILE, to * KEY_TILE, from > first_tile, dim,
                         WIDENED ? sizeof(float) * static_cast<size_t>(dim) : a.layout.value_row_bytes};
    for (int d = 0; d < dim;) {
      const int width = dim - d >= WIDE * LANES ? WIDE : 1;
      for (int g = 0; g < groups; ++g) {
        const int r = first_row(g), n = first_row(g + 1) - r;
        const float* weights = s.scores + static_cast<int64_t>(r) * ATTEND_RANGE;
        float* sums = range.sums + static_cast<int64_t>(r) * dim;
        if (width == WIDE)
          value_rows<CACHE, WIDE>(n, tiles, span, d, weights, s.low + r, s.high + r, sums);
        else
          value_rows<CACHE, 1>(n, tiles, span, d, weights, s.low + r, s.high + r, sums);
      }
      d += width * LANES;
    }
  }
}

template <CacheType CACHE>
static void attend_cache(const AttendArgs& a) {
  const int dim = a.layout.head_dim, rows = a.tokens * a.group;
  const AttendScratch s = cut_scratch(a.scratch, rows, dim);
  for (int r = 0; r < rows; ++r) {
    const float* query = a.query + r / a.group * a.query_stride + r % a.group * dim;
    for (int d = 0; d < dim; d += LANES) store(s.query + static_cast<int64_t>(r) * dim + d, mul(load(query + d), set1(a.scale * LOG2_E)));
  }
  if (!a.partials) take_up(a, s.own);
  for (int n = a.first_range; n < a.last_range; ++n) {
    Gathered range = s.range;
    if (a.partials) range = partial_at(a, n);
    int least, most;
    if (!find_visible(a, n * ATTEND_RANGE, s, least, most)) {
      if (a.partials) begin_gathering(range, rows, dim);
      continue;
    }
    const int first = least / KEY_TILE, last = (most + KEY_TILE - 1) / KEY_TILE;
    RangeTiles tiles = find_tiles(a, n * ATTEND_RANGE, first, last, span_after(a, n));
    if (rows >= WIDENED_FROM)
      attend_tiles<CacheType::f32, CACHE>(a, tiles, least, most, s, range);
    else
      attend_tiles<CACHE, CACHE>(a, tiles, least, most, s, range);
    if (!a.partials) merge_range(s.own, range, rows, dim, dim);
  }
  if (!a.partials) leave(a, s.own);
}

// Enough to hide widening, few enough for a near cache.
static int64_t attend_rows(const CacheLayout&) { return 48; }

static void attend(const AttendArgs& a) {
  switch (a.layout.type) {
    case CacheType::f32: return attend_cache<CacheType::f32>(a);
    case CacheType::bf16: return attend_cache<CacheType::bf16>(a);
    case CacheType::f16: return attend_cache<CacheType::f16>(a);
    case CacheType::int8: return attend_cache<CacheType::int8>(a);
  }
}

static void attend_merge(const AttendArgs& a) {
  const int dim = a.layout.head_dim, rows = a.tokens * a.group;
  const AttendScratch s = cut_scratch(a.scratch, rows, dim);
  take_up(a, s.own);
  for (int n = a.first_range; n < a.last_range; ++n)
    merge_range(s.own, partial_at(a, n), rows, dim, dim);
  leave(a, s.own);
}

}  // namespace puna::PUNA_NS
