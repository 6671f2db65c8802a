// The words of simd.hpp in AVX-512 (F, BW, VL, DQ, VNNI): a value is one register, a byte dot product one instruction.
// What the words mean stands there and at the portable ones; this file knows only which instruction says each.
#pragma once

#include "simd.hpp"

namespace puna::PUNA_NS {

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
static inline VF load_int8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
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
static inline ByteSums to_bytes(VF a, VF b, int8_t* out) {
  const __m512i x = to_bytes(a, out), y = to_bytes(b, out + 16);
  const __m256i first = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  const __m256i second = _mm256_add_epi32(_mm512_castsi512_si256(y), _mm512_extracti64x4_epi64(y, 1));
  return byte_sums(first, second);
}

static inline VI zero_int() { return {_mm512_setzero_si512()}; }
static inline VI set1_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline VI add_int(VI a, VI b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline VI sub_int(VI a, VI b) { return {_mm512_sub_epi32(a.v, b.v)}; }
template <int LEFT>  // to the right where it is negative
static inline VI shift_int(VI a) {
  if constexpr (LEFT >= 0) return {_mm512_slli_epi32(a.v, LEFT)};
  else return {_mm512_srai_epi32(a.v, -LEFT)};
}
static inline VI times_128(VI a) { return {_mm512_slli_epi32(a.v, 7)}; }
static inline VF to_float(VI a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline VB load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_bytes(uint8_t* p, VB a) { _mm512_storeu_si512(p, a.v); }
static inline VB low_nibbles(VB a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline VB high_nibbles(VB a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
// Each byte shifted to the right; what comes from above is nobody's.
template <int RIGHT>
static inline VB shifted(VB a) { return {_mm512_srli_epi16(a.v, RIGHT)}; }
// The bits of each byte of `a` that `mask` names, the others of `b`.
static inline VB chosen(uint8_t mask, VB a, VB b) {
  return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), a.v, b.v, 0xca)};
}
// Each byte shifted to the right, then those bits of it that `mask` names; none may come from another byte.
template <int RIGHT>
static inline VB fields(VB a, uint8_t mask) {
  const __m512i bits = RIGHT == 0 ? a.v : _mm512_srli_epi32(a.v, RIGHT);
  return {_mm512_and_si512(bits, _mm512_set1_epi8(static_cast<char>(mask)))};
}
// The low four bits of each byte of `low`, below the high four of `above`, which is shifted to the left by 0 or 4 before.
template <int LEFT>
static inline VB below(VB low, VB above) {
  const __m512i bits = LEFT == 0 ? above.v : _mm512_slli_epi32(above.v, LEFT);
  return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(15), low.v, bits, 0xca)};  // mask ? low : bits
}
// The entries of a table of sixteen bytes.
static inline VB look_up(VB index, const uint8_t* table) {
  const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(entries, index.v)};
}
// Per lane: sum + the dot product of four unsigned bytes (at most 127) with the four signed bytes at `four`. Compilers load
// those into a register first, which takes an operation more.
static inline VI dot_small(VI sum, VB bytes, const int8_t* four) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(bytes.v), "m"(*reinterpret_cast<const int8_t(*)[4]>(four)));
  return sum;
}
// The same for bytes up to 255.
static inline VI dot_bytes(VI sum, VB bytes, const int8_t* four) { return dot_small(sum, bytes, four); }

// An integer below 2^22 in size, plus this, has the bits of the float 3 * 2^22 plus it. Times a factor of at most 22 bits,
// less 3 * 2^22 times that, it is rounded once: the bits of the product, without a conversion.
constexpr int32_t DOT_ZERO = 0x4b400000;
struct DotFactor {
  VF scale, zero;
};
static inline DotFactor dot_factor(VF scale) { return {scale, mul(scale, set1(-0x3p22f))}; }
static inline VF times_dot(VI dot, DotFactor f) { return fma({_mm512_castsi512_ps(dot.v)}, f.scale, f.zero); }

}  // namespace puna::PUNA_NS
