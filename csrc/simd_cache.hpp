// What attention needs of an instruction set beyond simd.hpp: lanes to and from the types of the cache, the transposition
// of sixteen rows, and masks. The same values on every path, bit for bit; a NaN is stored as a NaN in the types that
// have one.
#pragma once

#include "simd.hpp"

namespace puna::PUNA_NS {

#if PUNA_PATH == 512

static inline VF load_int8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// Lanes hold whole numbers from -127 to 127.
static inline void store_int8(int8_t* p, VF x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
// Nearest bf16, ties to even, in the low half of each lane.
static inline __m512i round_to_bf16(VF x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i nearest = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i kept = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), nearest, kept);
}
static inline void store_bf16(uint16_t* p, VF x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(round_to_bf16(x)));
}
// Pairs (first, second) of each lane, one after the other.
static inline void store_bf16_pairs(uint16_t* p, VF first, VF second) {
  _mm512_storeu_si512(p, _mm512_or_si512(round_to_bf16(first), _mm512_slli_epi32(round_to_bf16(second), 16)));
}
// The first (0) or the second (1) of sixteen pairs of bf16.
template <int WHICH>
static inline VF load_bf16_of_pair(const uint16_t* p) {
  const __m512i both = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(WHICH == 0 ? _mm512_slli_epi32(both, 16)
                                         : _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
static inline VF zero_below(VF x, float limit, VF value) {
  const __mmask16 keep = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ);
  return {_mm512_maskz_mov_ps(keep, value.v)};
}
static inline float largest(VF x) { return _mm512_reduce_max_ps(x.v); }
// row[i] lane j becomes row[j] lane i.
static inline void transpose(VF* row) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(row[i].v, row[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(row[i].v, row[i + 1].v);
  }
  const auto pd = [](__m512 x) { return _mm512_castps_pd(x); };
  for (int i = 0; i < 16; i += 4) {
    row[i].v = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i]), pd(t[i + 2])));
    row[i + 1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i]), pd(t[i + 2])));
    row[i + 2].v = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i + 1]), pd(t[i + 3])));
    row[i + 3].v = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i + 1]), pd(t[i + 3])));
  }
  // Now quarter q of row[4 a + c] holds rows 4 a .. 4 a + 3 of column 4 q + c.
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(row[c].v, row[4 + c].v, 0x88), b = _mm512_shuffle_f32x4(row[8 + c].v, row[12 + c].v, 0x88);
    const __m512 d = _mm512_shuffle_f32x4(row[c].v, row[4 + c].v, 0xdd), e = _mm512_shuffle_f32x4(row[8 + c].v, row[12 + c].v, 0xdd);
    t[c] = _mm512_shuffle_f32x4(a, b, 0x88);
    t[8 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
    t[4 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
    t[12 + c] = _mm512_shuffle_f32x4(d, e, 0xdd);
  }
  for (int i = 0; i < 16; ++i) row[i].v = t[i];
}

#elif PUNA_PATH == 256

static inline __m256 widen_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline VF load_int8(const int8_t* p) { return {widen_int8(p), widen_int8(p + 8)}; }
static inline void store_int8(int8_t* p, VF x) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));  // a0 b0 a1 b1
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
static inline __m256i round_half_to_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i nearest = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i kept = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(nearest, kept, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
static inline void store_bf16(uint16_t* p, VF x) {
  const __m256i words = _mm256_packus_epi32(round_half_to_bf16(x.a), round_half_to_bf16(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}
static inline void store_bf16_pairs(uint16_t* p, VF first, VF second) {
  const auto join = [](__m256 x, __m256 y) {
    return _mm256_or_si256(round_half_to_bf16(x), _mm256_slli_epi32(round_half_to_bf16(y), 16));
  };
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), join(first.a, second.a));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16), join(first.b, second.b));
}
template <int WHICH>
static inline VF load_bf16_of_pair(const uint16_t* p) {
  const auto pick = [](const uint16_t* at) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    return _mm256_castsi256_ps(WHICH == 0 ? _mm256_slli_epi32(both, 16)
                                          : _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  };
  return {pick(p), pick(p + 16)};
}
static inline VF zero_below(VF x, float limit, VF value) {
  const __m256 least = _mm256_set1_ps(limit);
  return {_mm256_and_ps(value.a, _mm256_cmp_ps(x.a, least, _CMP_NLT_UQ)),
          _mm256_and_ps(value.b, _mm256_cmp_ps(x.b, least, _CMP_NLT_UQ))};
}
static inline float largest(VF x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
static inline void transpose_eight(__m256* r) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
    r[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
  }
}
static inline void transpose(VF* row) {
  __m256 quarter[2][2][8];  // rows 0-7 or 8-15, lanes 0-7 or 8-15
  for (int i = 0; i < 16; ++i) quarter[i / 8][0][i % 8] = row[i].a, quarter[i / 8][1][i % 8] = row[i].b;
  for (auto& rows : quarter)
    for (auto& eight : rows) transpose_eight(eight);
  for (int i = 0; i < 16; ++i) row[i] = {quarter[0][i / 8][i % 8], quarter[1][i / 8][i % 8]};
}

#else

static inline VF load_int8(const int8_t* p) {
  VF r;
  for (int i = 0; i < LANES; ++i) r.v[i] = p[i];
  return r;
}
static inline void store_int8(int8_t* p, VF x) {
  for (int i = 0; i < LANES; ++i) p[i] = static_cast<int8_t>(x.v[i]);
}
static inline void store_bf16(uint16_t* p, VF x) {
  for (int i = 0; i < LANES; ++i) p[i] = float_to_bf16(x.v[i]);
}
static inline void store_bf16_pairs(uint16_t* p, VF first, VF second) {
  for (int i = 0; i < LANES; ++i) p[2 * i] = float_to_bf16(first.v[i]), p[2 * i + 1] = float_to_bf16(second.v[i]);
}
template <int WHICH>
static inline VF load_bf16_of_pair(const uint16_t* p) {
  VF r;
  for (int i = 0; i < LANES; ++i) r.v[i] = bf16_to_float(p[2 * i + WHICH]);
  return r;
}
static inline VF zero_below(VF x, float limit, VF value) {
  for (int i = 0; i < LANES; ++i)
    if (x.v[i] < limit) value.v[i] = 0;
  return value;
}
static inline float largest(VF x) {
  float most = x.v[0];
  for (int i = 1; i < LANES; ++i) most = most > x.v[i] ? most : x.v[i];
  return most;
}
static inline void transpose(VF* row) {
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < i; ++j) {
      const float swapped = row[i].v[j];
      row[i].v[j] = row[j].v[i];
      row[j].v[i] = swapped;
    }
}

#endif

}  // namespace puna::PUNA_NS
