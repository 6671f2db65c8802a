// Scores become weights: 2^(score - peak of the range), rounded to bf16, in place, sixteen keys at a time.
//
// Knows rows of 128 scores and which of them a row sees; nothing of where they come from. Numbers below 2^-126 are
// flushed (FlushTiny): their weights would be nothing, and cost a hundred times as much.
//
// Eight operations on sixteen scores, and a rounding: they take longer than both products at head dimension 64.
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

// 2^x for x <= 0, within 9e-5, a twentieth of what rounding to bf16 adds; never above 1.
static inline __m512 power_of_two(__m512 x) {
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.0770670499f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.227644983f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.695116788f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);  // p * 2^floor(x)
}

static inline void weigh_step(__m512 low, __m512 high, __m512 peak, uint16_t* weights) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh(power_of_two(_mm512_sub_ps(high, peak)), power_of_two(_mm512_sub_ps(low, peak)));
  _mm512_store_si512(weights, reinterpret_cast<__m512i>(rounded));
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
  const __m512 beside = _mm512_set1_ps(peak);
  uint16_t* weights = reinterpret_cast<uint16_t*>(scores);
#pragma GCC unroll 8
  for (int i = 0; i < RANGE_STEPS; ++i)
    weigh_step(_mm512_load_ps(scores + STEP * i), _mm512_load_ps(scores + STEP * i + 16), beside, weights + STEP * i);
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
  __m512 highest = _mm512_set1_ps(-__builtin_inff());
  for (int key = first; key < last; key += 16) {
    VF x = load(scores + key);
    if (softcap > 0) x = mul(set1(cap), hyperbolic_tangent(mul(x, set1(1.0f / cap))));
    const __mmask16 visible = _mm512_cmplt_epu32_mask(_mm512_add_epi32(lanes, _mm512_set1_epi32(key - seen.low)), count);
    x.v = _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), visible, x.v);
    store(scores + key, x);
    highest = _mm512_max_ps(highest, x.v);
  }
  peak = _mm512_reduce_max_ps(highest);
  if (peak == -__builtin_inff()) peak = -__FLT_MAX__;
  const __m512 beside = _mm512_set1_ps(peak);
  for (int key = first; key < last; key += STEP)
    weigh_step(_mm512_load_ps(scores + key), _mm512_load_ps(scores + key + 16), beside, weights + key);
}

}  // namespace puna::path_amx
