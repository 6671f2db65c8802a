// Groups of packed weights decoded to bf16: 32 output rows of 32 inputs, 64 bytes a row: two tiles of matmul_amx.hpp.
//
// A value is scale * q + minimum in float32, rounded to nearest even. In four bits a row's group knows sixteen values:
// they are computed and rounded once, for two rows in one register, and looked up by the nibbles. In eight bits each
// value is computed: a byte b in the middle of the mantissa of 2^15 is 2^15 + b, and scale * that - scale * (2^15 + 128)
// is exact. Bytes and operations a group, q4: 640 bytes read, 2 KiB written, about 5 instructions a row.
#pragma once

#include <immintrin.h>

#include "kernels.hpp"
#include "packing.hpp"

namespace puna::path_amx {

constexpr int64_t TILE_BYTES = 1024;               // 16 rows of 64 bytes
constexpr int64_t DECODED_BYTES = 2 * TILE_BYTES;  // a group of a panel

// Factors of a group's rows. They are read back from memory, one by one into all lanes, which costs the ports that
// compute nothing; a compiler that sees through to the registers would shuffle instead.
struct alignas(64) RowFactors {
  float scale[PANEL];
  float minimum[PANEL];
  const RowFactors* from_memory() const {
    const RowFactors* p = this;
    asm volatile("" : "+r"(p)::"memory");
    return p;
  }
};

static inline __m512 sixteen_halves(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

static inline __m512i bf16_of(__m512 low, __m512 high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

// A format: the bytes of a group (packing.hpp), and how it becomes 32 rows of 64 bytes. `decode` returns where they lie:
// in `out`, or where they lay already.
struct Q4Rows {
  static constexpr size_t GROUP_BYTES = Q4_GROUP_BYTES;
  static inline const uint8_t* decode(const uint8_t* group, uint8_t* out);
};
struct Q8Rows {
  static constexpr size_t GROUP_BYTES = Q8_GROUP_BYTES;
  static inline const uint8_t* decode(const uint8_t* group, uint8_t* out);
};
struct Bf16Rows {
  static constexpr size_t GROUP_BYTES = HALF_GROUP_BYTES;
  static inline const uint8_t* decode(const uint8_t* group, uint8_t*) { return group; }
};

const uint8_t* Q4Rows::decode(const uint8_t* group, uint8_t* out) {
  RowFactors f;
  for (int half = 0; half < 2; ++half) {
    _mm512_store_ps(f.scale + 16 * half, sixteen_halves(group + 32 * half));
    _mm512_store_ps(f.minimum + 16 * half, sixteen_halves(group + 64 + 32 * half));
  }
  const __m512 q = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i nibbles = _mm512_set1_epi16(0x0f0f);
  const __m512i second = _mm512_set1_epi16(0x1010);
  const RowFactors* factors = f.from_memory();
  const auto values = [&](int row) {
    return _mm512_fmadd_ps(q, _mm512_set1_ps(factors->scale[row]), _mm512_set1_ps(factors->minimum[row]));
  };
#pragma GCC unroll 8
  for (int row = 0; row < PANEL; row += 4) {
    const __m512i words = _mm512_loadu_si512(group + 128 + 16 * row);
    const __m512i even = _mm512_and_si512(words, nibbles);
    const __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 4), nibbles, second, 0xea);  // (a & b) | c
    const __m512i first_two = bf16_of(values(row), values(row + 1));
    const __m512i last_two = bf16_of(values(row + 2), values(row + 3));
    uint8_t* to = out + 64 * row;
    _mm512_store_si512(to, _mm512_permutexvar_epi16(even, first_two));
    _mm512_store_si512(to + 64, _mm512_permutexvar_epi16(odd, first_two));
    _mm512_store_si512(to + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(even, 8), last_two));
    _mm512_store_si512(to + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(odd, 8), last_two));
  }
  return out;
}

const uint8_t* Q8Rows::decode(const uint8_t* group, uint8_t* out) {
  RowFactors f;
  for (int half = 0; half < 2; ++half) {
    const __m512 scale = sixteen_halves(group + 32 * half);
    _mm512_store_ps(f.scale + 16 * half, scale);
    _mm512_store_ps(f.minimum + 16 * half, _mm512_mul_ps(scale, _mm512_set1_ps(-32896.0f)));
  }
  const __m512i middle = _mm512_set1_epi32(0xff00);
  const __m512i power = _mm512_set1_epi32(0x47000000);  // 2^15
  const RowFactors* factors = f.from_memory();
  const auto value = [&](__m512i bytes, int row) {
    const __m512 q = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bytes, middle, power, 0xea));
    return _mm512_fmadd_ps(q, _mm512_set1_ps(factors->scale[row]), _mm512_set1_ps(factors->minimum[row]));
  };
#pragma GCC unroll 16
  for (int row = 0; row < PANEL; row += 2) {
    const __m512i bytes = _mm512_loadu_si512(group + 64 + 32 * row);
    const __m512 a = value(_mm512_slli_epi32(bytes, 8), row);
    const __m512 b = value(bytes, row);
    const __m512 c = value(_mm512_srli_epi32(bytes, 8), row + 1);
    const __m512 d = value(_mm512_srli_epi32(bytes, 16), row + 1);
    _mm512_store_si512(out + 64 * row, bf16_of(a, b));
    _mm512_store_si512(out + 64 * row + 64, bf16_of(c, d));
  }
  return out;
}

}  // namespace puna::path_amx
