// Attention on tiles of bf16 (AMX), for a cache of bf16.
//
// Rounded to bf16 are the scaled query and the weights, which are at most 1; sums are float32. Ranges, their merging and
// the promise that nobody's company changes a bit are attention.hpp's: the instruction adds 32 dimensions, or keys, in
// the same order for one row and for sixteen, and keys that a row does not see have the weight 0. What lies in the cache
// behind a sequence's end may be anything, and 0 times NaN is NaN: so values are copied, and unseen ones are 0 in it.
#define PUNA_PATH 512
#include "attention_amx.hpp"

#include <utility>

#include "attention_amx_weights.hpp"

namespace puna {

namespace {

using namespace path_amx;

struct Scratch {
  uint16_t* query;    // [rows][head_dim], scaled
  float* scores;      // [STRIP][ATTEND_RANGE], then weights and, where there is room for them, sums
  uint16_t* values;   // [ATTEND_RANGE / 2][head_dim][2], pairs of keys in the order of weights
  Gathered own;
  Gathered strip;
};

// What a row's weights, half as wide as scores, leave of their place: room for the sums of a strip that is merged at once.
constexpr int ROOM_AT = ATTEND_RANGE / 2;

// Where a strip leaves what it gathers of a range. Rows of sums are `sums_row` floats apart.
struct StripSums {
  Gathered to;
  int64_t sums_row;
};

Scratch cut_scratch(float* at, int rows, int dim) {
  const auto take = [&](int64_t floats) { return std::exchange(at, at + floats); };
  Scratch s{};
  s.query = reinterpret_cast<uint16_t*>(take(static_cast<int64_t>(rows) * dim / 2));
  s.scores = take(STRIP * ATTEND_RANGE);
  s.values = reinterpret_cast<uint16_t*>(take(static_cast<int64_t>(ATTEND_RANGE) / 2 * dim));
  s.own = gathered_at(take(attend_partial_floats(rows, dim)), rows, dim);
  s.strip = gathered_at(take(attend_partial_floats(STRIP, dim) + STRIP), STRIP, dim);  // merging reads past it
  return s;
}

Seen seen_by(const AttendArgs& a, int start, int token) {
  const auto inside = [](int key) { return key < 0 ? 0 : key > ATTEND_RANGE ? ATTEND_RANGE : key; };
  const int end = a.position + token + 1 - start;
  return {inside(a.window > 0 ? end - a.window : 0), inside(end)};
}

// From the first key that one of some neighbouring tokens sees to the last.
Seen seen_by_all(const AttendArgs& a, int start, int first_token, int last_token) {
  return {seen_by(a, start, first_token).low, seen_by(a, start, last_token).high};
}

void round_queries(const AttendArgs& a, uint16_t* to) {
  const int dim = a.layout.head_dim;
  const __m512 scale = _mm512_set1_ps(a.scale * LOG2_E);
  for (int r = 0; r < a.tokens * a.group; ++r) {
    const float* query = a.query + r / a.group * a.query_stride + r % a.group * dim;
    for (int d = 0; d < dim; d += STEP, to += STEP) {
      const __m512 low = _mm512_mul_ps(_mm512_loadu_ps(query + d), scale);
      const __m512 high = _mm512_mul_ps(_mm512_loadu_ps(query + d + 16), scale);
      _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }
}

// Copies the values that are seen, and zeros up to whole steps of keys. Returns whether one of them is no number.
template <bool CHECKED>
bool copy_values(const RangeTiles& tiles, const CacheLayout& layout, Seen seen, uint16_t* copy) {
  const size_t pair_bytes = 2 * layout.value_row_bytes;
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 odd = 0;
  const int last = (seen.high + STEP - 1) / STEP * STEP;
  for (int key = seen.low / STEP * STEP; key < last; key += 2) {
    const size_t place = static_cast<size_t>(key / STEP * (STEP / 2) + PAIR_PLACES.of[key / 2 % (STEP / 2)]);
    uint8_t* to = reinterpret_cast<uint8_t*>(copy) + place * pair_bytes;
    const bool first_seen = key >= seen.low && key < seen.high, second_seen = key + 1 >= seen.low && key + 1 < seen.high;
    if (!first_seen && !second_seen) {
      std::memset(to, 0, pair_bytes);
      continue;
    }
    const size_t at = static_cast<size_t>(key % KEY_TILE / 2) * pair_bytes;
    const uint8_t* from = tiles.values[key / KEY_TILE] + at;
    const uint8_t* next = tiles.next_values[key / KEY_TILE] + at;
    const uint8_t* next_key = tiles.next_keys[key / KEY_TILE] + at;  // a tile of keys is as long as one of values
    const __mmask32 kept = (first_seen ? 0x55555555u : 0u) | (second_seen ? 0xaaaaaaaau : 0u);
    for (size_t byte = 0; byte < pair_bytes; byte += 64) {
      fetch(next + byte);
      fetch(next_key + byte);
      const __m512i pairs = _mm512_maskz_loadu_epi16(kept, from + byte);
      if constexpr (CHECKED) odd |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
      _mm512_store_si512(to + byte, pairs);
    }
  }
  return odd != 0;
}

// What a range leaves of rows from `row` on.
Gathered rows_from(const Gathered& g, int row, int dim) {
  return {g.sums + static_cast<int64_t>(row) * dim, g.totals + row * LANES, g.peaks + row};
}

void multiply_scores(const uint16_t* query, const uint8_t* const* keys, int first, int last, int dim, float* scores) {
  if (dim == 64) return multiply_scores_64(query, keys, first, last, scores);
  for (int tile = first; tile < last; tile += BESIDE) {
    const int beside = last - tile < BESIDE ? last - tile : BESIDE;
    multiply(score_product(query, keys + tile, beside, dim, scores + tile * KEY_TILE));
  }
}

// Rows row .. row + rows - 1 and one range, whose values are copied.
void attend_strip(const AttendArgs& a, int start, const RangeTiles& tiles, int row, int rows, const Scratch& s, const StripSums& sums) {
  const int dim = a.layout.head_dim;
  const Gathered& to = sums.to;
  const Seen seen = seen_by_all(a, start, row / a.group, (row + rows - 1) / a.group);
  if (seen.none()) {
    for (int r = 0; r < rows; ++r) to.peaks[r] = -__builtin_inff();
    std::memset(to.totals, 0, sizeof(float) * static_cast<size_t>(rows * LANES));
    for (int r = 0; r < rows; ++r) std::memset(to.sums + r * sums.sums_row, 0, sizeof(float) * static_cast<size_t>(dim));
    return;
  }
  multiply_scores(s.query + static_cast<int64_t>(row) * dim, tiles.keys, seen.low / KEY_TILE,
                  (seen.high + KEY_TILE - 1) / KEY_TILE, dim, s.scores);
  written();
  const int first_step = seen.low / STEP, last_step = (seen.high + STEP - 1) / STEP;
  if (rows == STRIP && a.softcap == 0 && seen_by(a, start, row / a.group).whole() && seen_by(a, start, (row + rows - 1) / a.group).whole()) {
    find_peaks(s.scores, to.peaks);
    for (int r = 0; r < STRIP; ++r) weigh_whole_row(s.scores + r * ATTEND_RANGE, to.peaks[r]);
  } else {
    for (int r = 0; r < rows; ++r)
      weigh_row(s.scores + r * ATTEND_RANGE, first_step, last_step, seen_by(a, start, (row + r) / a.group), a.softcap, to.peaks[r]);
  }
  written();
  for (int d = 0; d < dim; d += BESIDE * 16)
    multiply(value_product(s.scores, s.values, d, dim, first_step, last_step, to.sums, sums.sums_row, to.totals));
  written();
}

// Tokens first_token .. last_token - 1 and one range: into its partial results, or merged into what they have.
void attend_range(const AttendArgs& a, int range, int first_token, int last_token, const Scratch& s, StripTiles& shapes) {
  const int dim = a.layout.head_dim, start = range * ATTEND_RANGE;
  const int begin = first_token * a.group, end = last_token * a.group;
  const Seen seen = seen_by_all(a, start, first_token, last_token - 1);
  if (seen.none() && !a.partials) return;
  RangeTiles tiles{};
  if (!seen.none()) {
    tiles = find_tiles(a, start, seen.low / KEY_TILE, (seen.high + KEY_TILE - 1) / KEY_TILE, span_after(a, range));
    const Seen first = seen_by(a, start, first_token), last = seen_by(a, start, last_token - 1);
    if (first.low == last.low && first.high == last.high) {
      copy_values<false>(tiles, a.layout, seen, s.values);
    } else if (copy_values<true>(tiles, a.layout, seen, s.values)) {
      // Some token may not see what is no number: each for itself, which changes no bit of it.
      for (int t = first_token; t < last_token; ++t) attend_range(a, range, t, t + 1, s, shapes);
      return;
    }
  }
  written();
  const int rows = end - begin < STRIP ? end - begin : STRIP;
  shapes.set(rows);
  for (int done = begin; done < end; done += rows) {
    const int row = done < end - rows ? done : end - rows;  // the last strip repeats some rows of the one before
    if (a.partials) {
      attend_strip(a, start, tiles, row, rows, s, {rows_from(partial_at(a, range), row, dim), dim});
      continue;
    }
    StripSums sums{s.strip, dim};
    if (dim <= ATTEND_RANGE - ROOM_AT) sums = {{s.scores + ROOM_AT, s.strip.totals, s.strip.peaks}, ATTEND_RANGE};
    attend_strip(a, start, tiles, row, rows, s, sums);
    const int repeated = done - row, count = rows - repeated;
    const Gathered own = rows_from(s.own, done, dim);
    Gathered strip = rows_from(sums.to, repeated, 0);
    strip.sums += repeated * sums.sums_row;
    if (dim == 64) merge_range(own, strip, count, 64, ATTEND_RANGE);
    else merge_range(own, strip, count, dim, sums.sums_row);
  }
}

}  // namespace

void attend_on_tiles(const AttendArgs& a) {
  const int dim = a.layout.head_dim, rows = a.tokens * a.group;
  const Scratch s = cut_scratch(a.scratch, rows, dim);
  const FlushTiny flush;
  round_queries(a, s.query);
  if (!a.partials) take_up(a, s.own);
  StripTiles shapes;
  for (int range = a.first_range; range < a.last_range; ++range) attend_range(a, range, 0, a.tokens, s, shapes);
  if (!a.partials) leave(a, s.own);
}

void merge_from_tiles(const AttendArgs& a) {
  const FlushTiny flush;
  avx512_kernels.attend_merge(a);
}

}  // namespace puna
