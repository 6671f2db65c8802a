// The thin layer over an instruction set: sixteen float lanes, sixteen int32 lanes, sixty-four bytes.
//
// Each instruction path compiles the kernels once with PUNA_PATH naming it: 512 (AVX-512 with VNNI), 256 (AVX2, FMA,
// F16C) or 0 (any C++ compiler). Everything is static and in a namespace of the path, so that no code compiled for a
// newer processor can be linked into an older path. A lane always belongs to one output value, so the order of a sum
// is the same on every path; only the portable path rounds the product of a multiply-add.
#pragma once

#include <cstdint>
#include <cstring>

#include "numeric.hpp"

#if PUNA_PATH == 512 || PUNA_PATH == 256
#include <immintrin.h>
#endif

#if PUNA_PATH == 512
#define PUNA_NS path_avx512
#elif PUNA_PATH == 256
#define PUNA_NS path_avx2
#else
#define PUNA_NS path_portable
#endif

namespace puna::PUNA_NS {

constexpr int LANES = 16;
// Tokens of the largest tile of the integer matmuls: as many as their sums fit into registers.
constexpr int MOST_TOKENS = PUNA_PATH == 512 ? 12 : 4;

#if PUNA_PATH == 512

struct VF { __m512 v; };
struct VI { __m512i v; };
struct VB { __m512i v; };  // 64 bytes: lane i holds bytes 4i .. 4i+3

static inline VF zero() { return {_mm512_setzero_ps()}; }
static inline VF set1(float x) { return {_mm512_set1_ps(x)}; }
static inline VF load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, VF a) { _mm512_storeu_ps(p, a.v); }
static inline VF add(VF a, VF b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline VF sub(VF a, VF b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline VF mul(VF a, VF b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline VF div(VF a, VF b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline VF max(VF a, VF b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline VF min(VF a, VF b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline VF fma(VF a, VF b, VF c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline VF round_even(VF a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline VF absolute(VF a) { return {_mm512_abs_ps(a.v)}; }
static inline VF scale_by_power_of_two(VF a, VF n) { return {_mm512_scalef_ps(a.v, n.v)}; }
static inline VF load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_half(uint16_t* p, VF a) {
  const __m512 limit = _mm512_set1_ps(65504.0f);
  const __m512 clipped = _mm512_min_ps(limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), a.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(clipped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline VF load_bf16(const uint16_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
// Lanes with low <= lane < high keep their value, the others become `other`.
static inline VF keep_lanes(VF a, int low, int high, float other) {
  const unsigned mask = ((1u << high) - 1u) & ~((1u << low) - 1u);
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), _mm512_set1_ps(other), a.v)};
}

static inline bool all_finite(VF a) {
  return _mm512_cmp_ps_mask(_mm512_sub_ps(a.v, a.v), _mm512_setzero_ps(), _CMP_EQ_OQ) == 0xffff;
}
// Sixteen numbers of at most 127 in size to bytes, ties to even; returns them as integers too.
static inline __m512i to_bytes(VF a, int8_t* out) {
  const __m512i whole = _mm512_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(whole));
  return whole;
}
static inline int32_t to_bytes(VF a, VF b, int8_t* out) {
  return _mm512_reduce_add_epi32(_mm512_add_epi32(to_bytes(a, out), to_bytes(b, out + 16)));
}

static inline VI zero_int() { return {_mm512_setzero_si512()}; }
static inline VI set1_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline VI add_int(VI a, VI b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline VI times_128(VI a) { return {_mm512_slli_epi32(a.v, 7)}; }
static inline VF to_float(VI a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline VB load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline VB low_nibbles(VB a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline VB high_nibbles(VB a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
// Per lane: sum + the dot product of four unsigned bytes (at most 15) with the four signed bytes of `four`.
static inline VI dot_nibbles(VI sum, VB bytes, int32_t four) {
  return {_mm512_dpbusd_epi32(sum.v, bytes.v, _mm512_set1_epi32(four))};
}
// The same for bytes up to 255.
static inline VI dot_bytes(VI sum, VB bytes, int32_t four) { return dot_nibbles(sum, bytes, four); }

#elif PUNA_PATH == 256

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
static inline int32_t to_bytes(VF x, VF y, int8_t* out) {
  const __m256i xa = _mm256_cvtps_epi32(x.a), xb = _mm256_cvtps_epi32(x.b);
  const __m256i ya = _mm256_cvtps_epi32(y.a), yb = _mm256_cvtps_epi32(y.b);
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(xa, xb), _mm256_packs_epi32(ya, yb));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(bytes, order));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(xa, xb), _mm256_add_epi32(ya, yb));
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static inline VI zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline VI set1_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline VI add_int(VI x, VI y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
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
// Two unsigned bytes of at most 127 times two signed ones never overflow 16 bits.
static inline __m256i dot_half(__m256i bytes, __m256i four) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, four), _mm256_set1_epi16(1));
}
static inline VI dot_nibbles(VI sum, VB x, int32_t four) {
  const __m256i f = _mm256_set1_epi32(four);
  return {_mm256_add_epi32(sum.a, dot_half(x.a, f)), _mm256_add_epi32(sum.b, dot_half(x.b, f))};
}
// Bytes up to 255 go in two parts, the low seven bits and the top bit, so that nothing saturates.
static inline __m256i dot_full(__m256i bytes, __m256i four) {
  const __m256i low = _mm256_and_si256(bytes, _mm256_set1_epi8(127));
  const __m256i top = _mm256_and_si256(_mm256_srli_epi16(bytes, 7), _mm256_set1_epi8(1));
  return _mm256_add_epi32(dot_half(low, four), _mm256_slli_epi32(dot_half(top, four), 7));
}
static inline VI dot_bytes(VI sum, VB x, int32_t four) {
  const __m256i f = _mm256_set1_epi32(four);
  return {_mm256_add_epi32(sum.a, dot_full(x.a, f)), _mm256_add_epi32(sum.b, dot_full(x.b, f))};
}

#else

struct VF { float v[LANES]; };
struct VI { int32_t v[LANES]; };
struct VB { uint8_t v[4 * LANES]; };

#define PUNA_EACH(expression)                    \
  VF r;                                          \
  for (int i = 0; i < LANES; ++i) r.v[i] = (expression); \
  return r

static inline VF zero() { PUNA_EACH(0.0f); }
static inline VF set1(float x) { PUNA_EACH(x); }
static inline VF load(const float* p) { PUNA_EACH(p[i]); }
static inline void store(float* p, VF a) {
  for (int i = 0; i < LANES; ++i) p[i] = a.v[i];
}
static inline VF add(VF a, VF b) { PUNA_EACH(a.v[i] + b.v[i]); }
static inline VF sub(VF a, VF b) { PUNA_EACH(a.v[i] - b.v[i]); }
static inline VF mul(VF a, VF b) { PUNA_EACH(a.v[i] * b.v[i]); }
static inline VF div(VF a, VF b) { PUNA_EACH(a.v[i] / b.v[i]); }
static inline VF max(VF a, VF b) { PUNA_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline VF min(VF a, VF b) { PUNA_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline VF fma(VF a, VF b, VF c) { PUNA_EACH(a.v[i] * b.v[i] + c.v[i]); }
// Adding and taking away 1.5 * 2^23 rounds to even; values here are far smaller.
static inline VF round_even(VF a) {
  const float magic = 12582912.0f;
  VF r;
  for (int i = 0; i < LANES; ++i) {
    volatile float shifted = a.v[i] + magic;
    r.v[i] = shifted - magic;
  }
  return r;
}
static inline VF absolute(VF a) { PUNA_EACH(bits_to_float(float_to_bits(a.v[i]) & 0x7fffffffu)); }
static inline VF scale_by_power_of_two(VF a, VF n) {
  PUNA_EACH(n.v[i] != n.v[i] ? n.v[i] : a.v[i] * bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23));
}
static inline VF load_half(const uint16_t* p) { PUNA_EACH(half_to_float(p[i])); }
static inline void store_half(uint16_t* p, VF a) {
  for (int i = 0; i < LANES; ++i) p[i] = float_to_half(a.v[i]);
}
static inline VF load_bf16(const uint16_t* p) { PUNA_EACH(bf16_to_float(p[i])); }
static inline VF keep_lanes(VF a, int low, int high, float other) {
  PUNA_EACH(i >= low && i < high ? a.v[i] : other);
}
#undef PUNA_EACH

static inline bool all_finite(VF a) {
  bool finite = true;
  for (int i = 0; i < LANES; ++i) finite &= a.v[i] - a.v[i] == 0.0f;
  return finite;
}
static inline int32_t to_bytes(VF a, VF b, int8_t* out) {
  a = round_even(a);
  b = round_even(b);
  int32_t sum = 0;
  for (int i = 0; i < LANES; ++i) {
    out[i] = static_cast<int8_t>(a.v[i]);
    out[LANES + i] = static_cast<int8_t>(b.v[i]);
    sum += out[i] + out[LANES + i];
  }
  return sum;
}

static inline VI zero_int() { return VI{}; }
static inline VI set1_int(int32_t x) {
  VI r;
  for (int i = 0; i < LANES; ++i) r.v[i] = x;
  return r;
}
static inline VI add_int(VI a, VI b) {
  for (int i = 0; i < LANES; ++i) a.v[i] += b.v[i];
  return a;
}
static inline VI times_128(VI a) {
  for (int i = 0; i < LANES; ++i) a.v[i] *= 128;
  return a;
}
static inline VF to_float(VI a) {
  VF r;
  for (int i = 0; i < LANES; ++i) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
static inline VB load_bytes(const uint8_t* p) {
  VB r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline VB low_nibbles(VB a) {
  for (int i = 0; i < 4 * LANES; ++i) a.v[i] &= 15;
  return a;
}
static inline VB high_nibbles(VB a) {
  for (int i = 0; i < 4 * LANES; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] >> 4);
  return a;
}
static inline VI dot_bytes(VI sum, VB a, int32_t four) {
  int8_t s[4];
  std::memcpy(s, &four, sizeof s);
  for (int i = 0; i < LANES; ++i)
    sum.v[i] += a.v[4 * i] * s[0] + a.v[4 * i + 1] * s[1] + a.v[4 * i + 2] * s[2] + a.v[4 * i + 3] * s[3];
  return sum;
}
static inline VI dot_nibbles(VI sum, VB a, int32_t four) { return dot_bytes(sum, a, four); }

#endif

// Reductions go in one fixed tree, the same on every path: (0+8)(1+9).. -> 4 -> 2 -> 1.
#if PUNA_PATH == 512 || PUNA_PATH == 256
template <class Fold>
static inline float reduce_quad(__m256 eight, Fold fold) {
  __m128 four = fold(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = fold(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(fold(four, _mm_shuffle_ps(four, four, 1)));
}
#if PUNA_PATH == 512
static inline __m256 low_half(VF a) { return _mm512_castps512_ps256(a.v); }
static inline __m256 high_half(VF a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
static inline __m256 low_half(VF a) { return a.a; }
static inline __m256 high_half(VF a) { return a.b; }
#endif
static inline float reduce_add(VF a) {
  const auto fold = [](__m128 x, __m128 y) { return _mm_add_ps(x, y); };
  return reduce_quad(_mm256_add_ps(low_half(a), high_half(a)), fold);
}
static inline float reduce_max(VF a) {
  const auto fold = [](__m128 x, __m128 y) { return _mm_max_ps(x, y); };
  return reduce_quad(_mm256_max_ps(low_half(a), high_half(a)), fold);
}
#else
static inline float reduce_add(VF a) {
  float lanes[LANES];
  store(lanes, a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
static inline float reduce_max(VF a) {
  float lanes[LANES];
  store(lanes, a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}
#endif

}  // namespace puna::PUNA_NS
