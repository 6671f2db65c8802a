// The words of simd.hpp in AVX2 with FMA and F16C: a value is two registers, and a byte dot product goes through sums of
// 16 bits, in parts that cannot overflow. Same values as AVX-512, bit for bit.
#pragma once

#include "simd.hpp"

namespace puna::PUNA_NS {

struct VF { __m256 a, b; };
struct VI { __m256i a, b; };
struct VB { __m256i a, b; };

static inline VF zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline VF set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline VF load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, VF x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
static inline VF add(VF x, VF y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline VF sub(VF x, VF y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline VF mul(VF x, VF y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline VF div(VF x, VF y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline VF max(VF x, VF y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline VF min(VF x, VF y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline VF fma(VF x, VF y, VF z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline VF round_even(VF x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
static inline VF absolute(VF x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline __m256 scale_half(__m256 x, __m256 n) {
  // 2^n through the exponent field; n is whole and -126 or more.
  const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(e));
}
static inline VF scale_by_power_of_two(VF x, VF n) { return {scale_half(x.a, n.a), scale_half(x.b, n.b)}; }
static inline VF load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
static inline void store_half(uint16_t* p, VF x) {
  const __m256 limit = _mm256_set1_ps(65504.0f);
  const __m256 least = _mm256_set1_ps(-65504.0f);
  const __m256 a = _mm256_min_ps(limit, _mm256_max_ps(least, x.a));
  const __m256 b = _mm256_min_ps(limit, _mm256_max_ps(least, x.b));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 widen_bf16(const uint16_t* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline VF load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
static inline __m256 widen_int8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline VF load_int8(const uint8_t* p) { return {widen_int8(p), widen_int8(p + 8)}; }
static inline VF keep_lanes(VF x, int low, int high, float other) {
  float lanes[LANES];
  store(lanes, x);
  for (int i = 0; i < LANES; ++i)
    if (i < low || i >= high) lanes[i] = other;
  return load(lanes);
}

static inline bool all_finite(VF x) {
  const __m256 zeros = _mm256_setzero_ps();
  const __m256 a = _mm256_cmp_ps(_mm256_sub_ps(x.a, x.a), zeros, _CMP_EQ_OQ);
  const __m256 b = _mm256_cmp_ps(_mm256_sub_ps(x.b, x.b), zeros, _CMP_EQ_OQ);
  return _mm256_movemask_ps(_mm256_and_ps(a, b)) == 0xff;
}
static inline ByteSums to_bytes(VF x, VF y, int8_t* out) {
  const __m256i xa = _mm256_cvtps_epi32(x.a), xb = _mm256_cvtps_epi32(x.b);
  const __m256i ya = _mm256_cvtps_epi32(y.a), yb = _mm256_cvtps_epi32(y.b);
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(xa, xb), _mm256_packs_epi32(ya, yb));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(bytes, order));
  return byte_sums(_mm256_add_epi32(xa, xb), _mm256_add_epi32(ya, yb));
}

static inline VI zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline VI set1_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline VI add_int(VI x, VI y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline VI sub_int(VI x, VI y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
template <int LEFT>
static inline VI shift_int(VI x) {
  if constexpr (LEFT >= 0) return {_mm256_slli_epi32(x.a, LEFT), _mm256_slli_epi32(x.b, LEFT)};
  else return {_mm256_srai_epi32(x.a, -LEFT), _mm256_srai_epi32(x.b, -LEFT)};
}
static inline VI times_128(VI x) { return {_mm256_slli_epi32(x.a, 7), _mm256_slli_epi32(x.b, 7)}; }
static inline VF to_float(VI x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline VB load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
static inline VB low_nibbles(VB x) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
static inline VB high_nibbles(VB x) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), m), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), m)};
}
template <int RIGHT>
static inline VB shifted(VB x) { return {_mm256_srli_epi16(x.a, RIGHT), _mm256_srli_epi16(x.b, RIGHT)}; }
static inline VB chosen(uint8_t mask, VB x, VB y) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_or_si256(_mm256_and_si256(m, x.a), _mm256_andnot_si256(m, y.a)),
          _mm256_or_si256(_mm256_and_si256(m, x.b), _mm256_andnot_si256(m, y.b))};
}
template <int RIGHT>
static inline VB fields(VB x, uint8_t mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(_mm256_srli_epi32(x.a, RIGHT), m), _mm256_and_si256(_mm256_srli_epi32(x.b, RIGHT), m)};
}
template <int LEFT>
static inline __m256i below_half(__m256i low, __m256i above) {
  const __m256i m = _mm256_set1_epi8(15);
  return _mm256_or_si256(_mm256_and_si256(low, m), _mm256_andnot_si256(m, _mm256_slli_epi32(above, LEFT)));
}
template <int LEFT>
static inline VB below(VB low, VB above) { return {below_half<LEFT>(low.a, above.a), below_half<LEFT>(low.b, above.b)}; }
static inline VB look_up(VB index, const uint8_t* table) {
  const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(entries, index.a), _mm256_shuffle_epi8(entries, index.b)};
}
static inline int32_t four_bytes(const int8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
// Two unsigned bytes of at most 127 times two signed ones never overflow 16 bits.
static inline __m256i dot_half(__m256i bytes, __m256i four) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, four), _mm256_set1_epi16(1));
}
static inline VI dot_small(VI sum, VB x, const int8_t* four) {
  const __m256i f = _mm256_set1_epi32(four_bytes(four));
  return {_mm256_add_epi32(sum.a, dot_half(x.a, f)), _mm256_add_epi32(sum.b, dot_half(x.b, f))};
}
// Bytes up to 255 go in two parts, the low seven bits and the top bit, so that nothing saturates.
static inline __m256i dot_full(__m256i bytes, __m256i four) {
  const __m256i low = _mm256_and_si256(bytes, _mm256_set1_epi8(127));
  const __m256i top = _mm256_and_si256(_mm256_srli_epi16(bytes, 7), _mm256_set1_epi8(1));
  return _mm256_add_epi32(dot_half(low, four), _mm256_slli_epi32(dot_half(top, four), 7));
}
static inline VI dot_bytes(VI sum, VB x, const int8_t* four) {
  const __m256i f = _mm256_set1_epi32(four_bytes(four));
  return {_mm256_add_epi32(sum.a, dot_full(x.a, f)), _mm256_add_epi32(sum.b, dot_full(x.b, f))};
}

// What a dot begins with, for a product with a factor of at most 22 bits (simd_avx512.hpp).
constexpr int32_t DOT_ZERO = 0;
struct DotFactor {
  VF scale;
};
static inline DotFactor dot_factor(VF scale) { return {scale}; }
static inline VF times_dot(VI dot, DotFactor f) { return mul(to_float(dot), f.scale); }

}  // namespace puna::PUNA_NS
