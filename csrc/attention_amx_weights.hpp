// Scores become weights: 2^(score - peak of the range) as bf16, in place, 32 keys at a time.
//
// Knows rows of 128 scores and which of them a row sees; nothing of where they come from. Numbers below 2^-126 are
// flushed (FlushTiny): their weights would be nothing, and cost a hundred times as much.
//
// A weight has seven bits, so its exponent may have as few: a score's distance from the peak is rounded to 128ths, of which
// the lowest seven bits choose a mantissa and the others count down the exponent. A weight is within 0.8 % of the exact
// one; both sums, of weights and of weighted values, are made of the same. Ten operations on 32 scores.
#pragma once

#include "attention_amx_products.hpp"
#include "attention_ranges.hpp"

namespace puna::path_amx {

using namespace path_avx512;  // files that include this are compiled for more than that

// While this lives, results below 2^-126 are zero.
class FlushTiny {
 public:
  FlushTiny() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushTiny() { _mm_setcsr(before_); }
  FlushTiny(const FlushTiny&) = delete;
  FlushTiny& operator=(const FlushTiny&) = delete;

 private:
  unsigned before_;
};

// Keys low .. high - 1 of a range.
struct Seen {
  int low;
  int high;
  bool none() const { return high <= low; }
  bool whole() const { return low == 0 && high == ATTEND_RANGE; }
};

// For u = 128 n + f, 0 <= f < 128, the bits of 2^-(u / 128) as bf16 are 0x3f00 - u + RISE[f / 2]: the mantissa of
// 2^(1 - f / 128), in 128ths above 1, and f. It changes so little from one f to the next that one number serves two. Where
// u takes more than there is, the weight is nothing.
constexpr int FINENESS = 128;
struct alignas(64) WeightRise {
  uint8_t of[64] = {};
  constexpr WeightRise() {
    double power = 2, next = power * STEP_DOWN;  // 2^(1 - f / 128), and of f + 1
    for (int f = 0; f < FINENESS; f += 2, power = next * STEP_DOWN, next = power * STEP_DOWN)
      of[f / 2] = static_cast<uint8_t>(FINENESS * ((power + next) / 2 - 1) + f + 0.5 + 0.5);
    of[0] = FINENESS;  // the peak itself weighs 1
  }

 private:
  static constexpr double STEP_DOWN = 0.99459942348363317565;  // 2^(-1 / 128)
};
constexpr WeightRise RISE;
constexpr uint16_t WEIGHT_ONE_HALF = 0x3f00;

// Scores, of keys that are not seen -inf, become weights; never above 1. They leave in the order of PAIR_PLACES.
static inline void weigh_step(__m512 low, __m512 high, __m512 peak_128ths, __m512i rise, uint16_t* weights) {
  const __m512 scale = _mm512_set1_ps(FINENESS);
  const __m512i from_low = _mm512_cvtps_epi32(_mm512_fnmadd_ps(low, scale, peak_128ths));
  const __m512i from_high = _mm512_cvtps_epi32(_mm512_fnmadd_ps(high, scale, peak_128ths));
  // What no int32 holds is the lowest one, then 0x8000, which is far as an unsigned number.
  const __m512i u = _mm512_packs_epi32(from_low, from_high);
  const __m512i one_half = _mm512_set1_epi16(static_cast<int16_t>(WEIGHT_ONE_HALF));
  const __m512i highest = _mm512_mask_permutexvar_epi8(one_half, 0x5555555555555555u, _mm512_srli_epi16(u, 1), rise);
  _mm512_store_si512(weights, _mm512_subs_epu16(highest, u));
}

// Where the weights of a pair of keys lie among the sixteen pairs of a step: each quarter of a register packs four of the
// first and four of the last sixteen keys.
struct PairPlaces {
  uint8_t of[STEP / 2] = {};
  constexpr PairPlaces() {
    for (int pair = 0; pair < STEP / 2; ++pair) of[pair] = static_cast<uint8_t>(pair % 8 / 2 * 4 + pair / 8 * 2 + pair % 2);
  }
};
constexpr PairPlaces PAIR_PLACES;

// Whether one of them is no number, which would become a weight of nothing: then the row's first weight is none either.
static inline void keep_nan(__m512 sum_of_scores, uint16_t* weights) {
  if (_mm512_cmp_ps_mask(sum_of_scores, sum_of_scores, _CMP_UNORD_Q)) weights[0] = 0x7fc0;
}

// The highest scores of sixteen rows that see the whole range; the lowest number where all are -inf, which says that a row
// saw no key (attention.hpp).
static inline void find_peaks(const float* scores, float* peaks) {
  alignas(64) float highest[STRIP * 16];
  for (int r = 0; r < STRIP; ++r) {
    const float* row = scores + r * ATTEND_RANGE;
    const auto higher = [&](int i, int j) { return _mm512_max_ps(_mm512_load_ps(row + 16 * i), _mm512_load_ps(row + 16 * j)); };
    _mm512_store_ps(highest + 16 * r, _mm512_max_ps(_mm512_max_ps(higher(0, 1), higher(2, 3)), _mm512_max_ps(higher(4, 5), higher(6, 7))));
  }
  const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
  __m512 peak = nothing;
  for_columns<STRIP>(highest, 64, [&](int, __m512i column) { peak = _mm512_max_ps(peak, _mm512_castsi512_ps(column)); });
  peak = _mm512_mask_mov_ps(peak, _mm512_cmp_ps_mask(peak, nothing, _CMP_EQ_OQ), _mm512_set1_ps(-__FLT_MAX__));
  _mm512_storeu_ps(peaks, peak);
}

// A row that sees the whole range.
static inline void weigh_whole_row(float* scores, float peak) {
  const __m512 beside = _mm512_set1_ps(FINENESS * peak);
  const __m512i rise = _mm512_load_si512(RISE.of);
  uint16_t* weights = reinterpret_cast<uint16_t*>(scores);
  __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int i = 0; i < RANGE_STEPS; ++i) {
    const __m512 low = _mm512_load_ps(scores + STEP * i), high = _mm512_load_ps(scores + STEP * i + 16);
    sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
    weigh_step(low, high, beside, rise, weights + STEP * i);
  }
  keep_nan(sum, weights);
}

// A row that sees some keys of steps first_step .. last_step - 1, or none.
static inline void weigh_row(float* scores, int first_step, int last_step, Seen seen, float softcap, float& peak) {
  const int first = first_step * STEP, last = last_step * STEP;
  uint16_t* weights = reinterpret_cast<uint16_t*>(scores);
  if (seen.none()) {
    peak = -__builtin_inff();
    std::memset(weights + first, 0, sizeof(uint16_t) * static_cast<size_t>(last - first));
    return;
  }
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i count = _mm512_set1_epi32(seen.high - seen.low);
  const float cap = softcap * LOG2_E;
  __m512 highest = _mm512_set1_ps(-__builtin_inff()), sum = _mm512_setzero_ps();
  for (int key = first; key < last; key += 16) {
    VF x = load(scores + key);
    if (softcap > 0) x = mul(set1(cap), hyperbolic_tangent(mul(x, set1(1.0f / cap))));
    const __mmask16 visible = _mm512_cmplt_epu32_mask(_mm512_add_epi32(lanes, _mm512_set1_epi32(key - seen.low)), count);
    x.v = _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), visible, x.v);
    store(scores + key, x);
    sum = _mm512_add_ps(sum, x.v);
    highest = _mm512_max_ps(highest, x.v);
  }
  peak = _mm512_reduce_max_ps(highest);
  if (peak == -__builtin_inff()) peak = -__FLT_MAX__;
  const __m512 beside = _mm512_set1_ps(FINENESS * peak);
  const __m512i rise = _mm512_load_si512(RISE.of);
  for (int key = first; key < last; key += STEP)
    weigh_step(_mm512_load_ps(scores + key), _mm512_load_ps(scores + key + 16), beside, rise, weights + key);
  keep_nan(sum, weights + first);
}

}  // namespace puna::path_amx
