// The thin layer over an instruction set: sixteen float lanes, sixteen int32 lanes, sixty-four bytes.
//
// Each instruction path compiles the kernels once with PUNA_PATH naming it: 512 (AVX-512 with VNNI), 256 (AVX2, FMA,
// F16C) or 0 (any C++ compiler). Everything is static and in a namespace of the path, so that no code compiled for a
// newer processor can be linked into an older path. A lane always belongs to one output value, so the order of a sum
// is the same on every path; only the portable path rounds the product of a multiply-add. The words are the same on
// every path too, and each path has its own file of them: simd_avx512.hpp, simd_avx2.hpp, simd_portable.hpp.
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
// Tokens of a tile of the integer matmuls: as many as their sums fit into registers.
constexpr int MOST_TOKENS = PUNA_PATH == 512 ? 12 : 4;

// Of 32 numbers that became bytes: the sums of the first and of the last sixteen.
struct ByteSums {
  int32_t first, second;
};
#if PUNA_PATH == 512 || PUNA_PATH == 256
static inline ByteSums byte_sums(__m256i first, __m256i second) {
  const __m256i pairs = _mm256_hadd_epi32(first, second);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return {_mm_cvtsi128_si32(two), _mm_extract_epi32(two, 2)};
}
#endif

}  // namespace puna::PUNA_NS

#if PUNA_PATH == 512
#include "simd_avx512.hpp"
#elif PUNA_PATH == 256
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif

namespace puna::PUNA_NS {

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
