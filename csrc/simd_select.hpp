// More of the thin layer over an instruction set (simd.hpp), for those who search: comparisons that give masks,
// writing only chosen lanes, and eight 64-bit lanes whose low halves are multiplied in full, as Philox wants it.
#pragma once

#include "simd.hpp"

namespace puna::PUNA_NS {

#if PUNA_PATH == 512

struct VM { __mmask16 v; };   // one bit a float lane
struct VL { __m512i v; };     // eight lanes of 64 bits, of which the low 32 count

static inline VM at_least(VF a, VF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
static inline VM above(VF a, VF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
static inline VM equal(VF a, VF b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
static inline VM below_int(VI a, VI b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
static inline VM both(VM a, VM b) { return {static_cast<__mmask16>(a.v & b.v)}; }
static inline VM either(VM a, VM b) { return {static_cast<__mmask16>(a.v | b.v)}; }
static inline VM mask_of(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
static inline uint32_t bits_of(VM m) { return m.v; }
static inline VF where(VM m, VF a, VF b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
static inline VI load_int(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline VI shift_right_1(VI a) { return {_mm512_srli_epi32(a.v, 1)}; }
static inline VI as_int(VF a) { return {_mm512_castps_si512(a.v)}; }
static inline float fold_max(VF a) { return _mm512_reduce_max_ps(a.v); }
// y = whole + fraction with 0 <= fraction < 1, `whole` as scale_by_power_of_two takes it (which rounds it down itself).
struct Split { VF whole, fraction; };
static inline Split split(VF y) { return {y, {_mm512_reduce_ps(y.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}}; }
// Writes first + lane and the value of each chosen lane, close together; up to 16 places are written to. No branch: in a row of
// logits it would be mispredicted at nearly every token that is found.
static inline int put(uint32_t chosen, int32_t first, VF v, int32_t* ids, float* values) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i tokens = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  _mm512_storeu_si512(ids, _mm512_maskz_compress_epi32(static_cast<__mmask16>(chosen), tokens));
  _mm512_storeu_ps(values, _mm512_maskz_compress_ps(static_cast<__mmask16>(chosen), v.v));
  return __builtin_popcount(chosen);
}

static inline VL set1_long(uint32_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
static inline VL count_up(uint32_t x) {
  return {_mm512_add_epi64(set1_long(x).v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))};
}
static inline VL load_longs(const int32_t* p) {
  return {_mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline VL product(VL a, VL b) { return {_mm512_mul_epu32(a.v, b.v)}; }  // of the low halves, 64 bits
// The high half in the low one. A shuffle, because multiplications and shifts would wait for the same port.
static inline VL high(VL a) { return {_mm512_shuffle_epi32(a.v, static_cast<_MM_PERM_ENUM>(0xF5))}; }
static inline VL quarter(VL a) { return {_mm512_srli_epi64(a.v, 2)}; }
static inline VL exclusive(VL a, VL b, VL c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)}; }
// Lane by lane words[id % 4].
static inline VL pick(VL id, const VL words[4]) {
  const __mmask8 odd = _mm512_test_epi64_mask(id.v, _mm512_set1_epi64(1));
  const __mmask8 upper = _mm512_test_epi64_mask(id.v, _mm512_set1_epi64(2));
  return {_mm512_mask_blend_epi64(upper, _mm512_mask_blend_epi64(odd, words[0].v, words[1].v),
                                  _mm512_mask_blend_epi64(odd, words[2].v, words[3].v))};
}
static inline void store_low(uint32_t* p, VL a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(a.v));
}
static inline uint32_t at_most(VL a, uint32_t limit) {  // of the low halves, without sign: one bit a lane
  const __mmask16 halves = _mm512_cmple_epu32_mask(a.v, _mm512_set1_epi32(static_cast<int32_t>(limit)));
  if ((halves & 0x5555u) == 0) return 0;
  // Sixteen bits of which eight count: a mask of eight that GCC 12 spills is stored as one byte and read back as four.
  const __m512i low = _mm512_zextsi256_si512(_mm512_cvtepi64_epi32(a.v));
  return _mm512_mask_cmple_epu32_mask(0xff, low, _mm512_set1_epi32(static_cast<int32_t>(limit)));
}

#elif PUNA_PATH == 256

struct VM { __m256 a, b; };
struct VL { __m256i a, b; };

#define PUNA_HALVES(f) {f(x.a, y.a), f(x.b, y.b)}
static inline __m256 ge(__m256 x, __m256 y) { return _mm256_cmp_ps(x, y, _CMP_GE_OQ); }
static inline __m256 gt(__m256 x, __m256 y) { return _mm256_cmp_ps(x, y, _CMP_GT_OQ); }
static inline __m256 eq(__m256 x, __m256 y) { return _mm256_cmp_ps(x, y, _CMP_EQ_OQ); }
static inline __m256 lt_int(__m256i x, __m256i y) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(y, x)); }
static inline VM at_least(VF x, VF y) { return PUNA_HALVES(ge); }
static inline VM above(VF x, VF y) { return PUNA_HALVES(gt); }
static inline VM equal(VF x, VF y) { return PUNA_HALVES(eq); }
static inline VM below_int(VI x, VI y) { return PUNA_HALVES(lt_int); }
static inline VM both(VM x, VM y) { return PUNA_HALVES(_mm256_and_ps); }
static inline VM either(VM x, VM y) { return PUNA_HALVES(_mm256_or_ps); }
#undef PUNA_HALVES
static inline __m256 spread(uint32_t bits) {
  const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, lanes));
}
static inline VM mask_of(uint32_t bits) { return {spread(bits), spread(bits >> 8)}; }
static inline uint32_t bits_of(VM m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.a)) | static_cast<uint32_t>(_mm256_movemask_ps(m.b)) << 8;
}
static inline VF where(VM m, VF x, VF y) { return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)}; }
static inline VI load_int(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
static inline VI shift_right_1(VI x) { return {_mm256_srli_epi32(x.a, 1), _mm256_srli_epi32(x.b, 1)}; }
static inline VI as_int(VF x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static inline float fold_max(VF x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
struct Split { VF whole, fraction; };
static inline Split split(VF y) {
  constexpr int mode = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  const VF whole = {_mm256_round_ps(y.a, mode), _mm256_round_ps(y.b, mode)};
  return {whole, sub(y, whole)};
}
static inline int put(uint32_t chosen, int32_t first, VF v, int32_t* ids, float* values) {
  if (chosen == 0) return 0;
  float lanes[LANES];
  store(lanes, v);
  int count = 0;
  for (; chosen != 0; chosen &= chosen - 1) {
    const int lane = __builtin_ctz(chosen);
    ids[count] = first + lane;
    values[count++] = lanes[lane];
  }
  return count;
}

static inline VL set1_long(uint32_t x) {
  const __m256i v = _mm256_set1_epi64x(static_cast<int64_t>(x));
  return {v, v};
}
static inline VL count_up(uint32_t x) {
  const __m256i base = set1_long(x).a;
  return {_mm256_add_epi64(base, _mm256_setr_epi64x(0, 1, 2, 3)), _mm256_add_epi64(base, _mm256_setr_epi64x(4, 5, 6, 7))};
}
static inline VL load_longs(const int32_t* p) {
  return {_mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4)))};
}
static inline VL product(VL x, VL y) { return {_mm256_mul_epu32(x.a, y.a), _mm256_mul_epu32(x.b, y.b)}; }
static inline VL high(VL x) { return {_mm256_shuffle_epi32(x.a, 0xF5), _mm256_shuffle_epi32(x.b, 0xF5)}; }
static inline VL quarter(VL x) { return {_mm256_srli_epi64(x.a, 2), _mm256_srli_epi64(x.b, 2)}; }
static inline VL exclusive(VL x, VL y, VL z) {
  return {_mm256_xor_si256(_mm256_xor_si256(x.a, y.a), z.a), _mm256_xor_si256(_mm256_xor_si256(x.b, y.b), z.b)};
}
// The top bit of each 64-bit lane, moved there by `left` places, chooses.
static inline __m256i pick_half(__m256i id, __m256i w0, __m256i w1, __m256i w2, __m256i w3) {
  const __m256d odd = _mm256_castsi256_pd(_mm256_slli_epi64(id, 63));
  const __m256d upper = _mm256_castsi256_pd(_mm256_slli_epi64(id, 62));
  const __m256d low = _mm256_blendv_pd(_mm256_castsi256_pd(w0), _mm256_castsi256_pd(w1), odd);
  const __m256d top = _mm256_blendv_pd(_mm256_castsi256_pd(w2), _mm256_castsi256_pd(w3), odd);
  return _mm256_castpd_si256(_mm256_blendv_pd(low, top, upper));
}
static inline VL pick(VL id, const VL w[4]) {
  return {pick_half(id.a, w[0].a, w[1].a, w[2].a, w[3].a), pick_half(id.b, w[0].b, w[1].b, w[2].b, w[3].b)};
}
static inline void store_low(uint32_t* p, VL x) {
  alignas(32) uint64_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x.a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 4), x.b);
  for (int i = 0; i < 8; ++i) p[i] = static_cast<uint32_t>(lanes[i]);
}
static inline uint32_t at_most_half(__m256i x, __m256i limit) {
  const __m256i low = _mm256_and_si256(x, _mm256_set1_epi64x(0xffffffff));  // positive as signed 64 bits
  return 15u & ~static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(low, limit))));
}
static inline uint32_t at_most(VL x, uint32_t limit) {
  const __m256i l = set1_long(limit).a;
  return at_most_half(x.a, l) | at_most_half(x.b, l) << 4;
}

#else

struct VM { bool v[LANES]; };
struct VL { uint64_t v[8]; };

#define PUNA_MASK(expression)                            \
  VM r;                                                  \
  for (int i = 0; i < LANES; ++i) r.v[i] = (expression); \
  return r
#define PUNA_LONG(expression)                        \
  VL r;                                              \
  for (int i = 0; i < 8; ++i) r.v[i] = (expression); \
  return r

static inline VM at_least(VF a, VF b) { PUNA_MASK(a.v[i] >= b.v[i]); }
static inline VM above(VF a, VF b) { PUNA_MASK(a.v[i] > b.v[i]); }
static inline VM equal(VF a, VF b) { PUNA_MASK(a.v[i] == b.v[i]); }
static inline VM below_int(VI a, VI b) { PUNA_MASK(a.v[i] < b.v[i]); }
static inline VM both(VM a, VM b) { PUNA_MASK(a.v[i] & b.v[i]); }
static inline VM either(VM a, VM b) { PUNA_MASK(a.v[i] | b.v[i]); }
static inline VM mask_of(uint32_t bits) { PUNA_MASK((bits >> i & 1u) != 0); }
static inline uint32_t bits_of(VM m) {
  uint32_t bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= static_cast<uint32_t>(m.v[i]) << i;
  return bits;
}
static inline VF where(VM m, VF a, VF b) {
  for (int i = 0; i < LANES; ++i) a.v[i] = m.v[i] ? a.v[i] : b.v[i];
  return a;
}
static inline VI load_int(const int32_t* p) {
  VI r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline VI shift_right_1(VI a) {
  for (int i = 0; i < LANES; ++i) a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> 1);
  return a;
}
static inline VI as_int(VF a) {
  VI r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}
static inline float fold_max(VF a) { return reduce_max(a); }
struct Split { VF whole, fraction; };
static inline Split split(VF y) {
  VF whole;
  for (int i = 0; i < LANES; ++i) whole.v[i] = __builtin_floorf(y.v[i]);
  return {whole, sub(y, whole)};
}
static inline int put(uint32_t chosen, int32_t first, VF v, int32_t* ids, float* values) {
  if (chosen == 0) return 0;
  float lanes[LANES];
  store(lanes, v);
  int count = 0;
  for (; chosen != 0; chosen &= chosen - 1) {
    const int lane = __builtin_ctz(chosen);
    ids[count] = first + lane;
    values[count++] = lanes[lane];
  }
  return count;
}

static inline VL set1_long(uint32_t x) { PUNA_LONG(x); }
static inline VL count_up(uint32_t x) { PUNA_LONG(uint64_t{x} + static_cast<uint64_t>(i)); }
static inline VL load_longs(const int32_t* p) { PUNA_LONG(static_cast<uint32_t>(p[i])); }
static inline VL product(VL a, VL b) { PUNA_LONG((a.v[i] & 0xffffffffu) * (b.v[i] & 0xffffffffu)); }
static inline VL high(VL a) { PUNA_LONG(a.v[i] >> 32); }
static inline VL quarter(VL a) { PUNA_LONG(a.v[i] >> 2); }
static inline VL exclusive(VL a, VL b, VL c) { PUNA_LONG(a.v[i] ^ b.v[i] ^ c.v[i]); }
static inline VL pick(VL id, const VL words[4]) { PUNA_LONG(words[id.v[i] & 3].v[i]); }
static inline void store_low(uint32_t* p, VL a) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<uint32_t>(a.v[i]);
}
static inline uint32_t at_most(VL a, uint32_t limit) {
  uint32_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= static_cast<uint32_t>(static_cast<uint32_t>(a.v[i]) <= limit) << i;
  return bits;
}
#undef PUNA_MASK
#undef PUNA_LONG

#endif

// Of sixteen values those that are there, 0 < count < 16, the others `rest`.
static inline VF load_some(const float* p, int64_t count, float rest) {
  float lanes[LANES];
  for (float& lane : lanes) lane = rest;
  std::memcpy(lanes, p, sizeof(float) * static_cast<size_t>(count));
  return load(lanes);
}
static inline void store_some(float* p, VF a, int64_t count) {
  if (count >= LANES) return store(p, a);
  float lanes[LANES];
  store(lanes, a);
  std::memcpy(p, lanes, sizeof(float) * static_cast<size_t>(count));
}

}  // namespace puna::PUNA_NS
