// Activations rounded to bf16, and where they lie for the products of matmul_amx.hpp. Where f16 weights read them, what is
// left of each value is rounded once more and lies likewise, in an array of its own: both together have 16 bits.
//
// Rows are rounded by whoever makes them, into lines of the cache that hold one token each: threads that share lines
// take them from each other at every store. Few rows are then turned into pairs of inputs by each thread for itself, as
// often as they were rounded: every thread reads all of them anyway.
//
//   few, rounded    [tokens][groups][32 inputs]
//   few, arranged   tile after tile of tokens: [groups][16 pairs of inputs][tokens][2]
//   many            sixteen after sixteen tokens: [groups][16 tokens][32 inputs]
#pragma once

#include <algorithm>

#include "decode_bf16.hpp"
#include "kernels.hpp"
#include "tiles.hpp"

namespace puna::path_amx {

constexpr int64_t MANY = 65;  // rows of a step from which on tokens are the left factor

// Tokens of a tile, as few multiply them: a power of two, so that rows of pairs do not cross cache lines.
static inline int64_t tile_tokens(int64_t left) { return left <= 1 ? 1 : left <= 2 ? 2 : left <= 4 ? 4 : left <= 8 ? 8 : 16; }

// The lanes of a group that has `left` values.
static inline uint32_t lanes_of(int64_t left) { return left >= GROUP ? 0xffffffffu : (1u << left) - 1u; }

// Where a group of a row lies.
static inline int64_t place_in_rows(const QuantizedRows& out, int64_t groups, int64_t row, int64_t g) {
  if (out.rows < MANY) return (row * groups + g) * GROUP;
  return ((row - row % 16) * groups + g * 16 + row % 16) * GROUP;
}

static inline __m512 widened(__m256i sixteen) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
}

// A group of 32 values, to place `at`.
static inline void keep_rounded(const QuantizedRows& out, int64_t at, __m512 low, __m512 high) {
  const __m512i rounded = bf16_of(low, high);
  _mm512_store_si512(out.bf16 + at, rounded);
  if (!out.rest) return;
  const __m512 low_rest = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(rounded)));
  const __m512 high_rest = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(rounded, 1)));
  _mm512_store_si512(out.rest + at, bf16_of(low_rest, high_rest));
}

static void round_bf16(const float* x, int64_t width, const QuantizedRows& out, int64_t row) {
  const int64_t groups = (width + GROUP - 1) / GROUP;
  const int64_t to = place_in_rows(out, groups, row, 0);
  const int64_t stride = place_in_rows(out, groups, row, 1) - to;
  for (int64_t g = 0; g < groups; ++g) {
    const uint32_t there = lanes_of(width - g * GROUP);
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there), x + g * GROUP);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there >> 16), x + g * GROUP + 16);
    keep_rounded(out, to + g * stride, low, high);
  }
}

// A tile of up to TOKENS rows; rows that are not there are never looked at.
template <int TOKENS>
static inline void arrange_tile(const uint16_t* rows, int64_t groups, uint16_t* out) {
  constexpr __mmask16 there = static_cast<__mmask16>((1u << TOKENS) - 1u);
  for (int64_t g = 0; g < groups; ++g) {
    uint16_t* pairs = out + g * GROUP * TOKENS;
    for_columns<TOKENS>(rows + g * GROUP, groups * GROUP * 2, [&](int64_t pair, __m512i values) {
      _mm512_mask_storeu_epi32(pairs + pair * 2 * TOKENS, there, values);
    });
  }
}

static void arrange(const uint16_t* rounded, int64_t rows, int64_t groups, uint16_t* out) {
  for (int64_t row = 0; row < rows; row += 16) {
    const uint16_t* from = rounded + row * groups * GROUP;
    uint16_t* to = out + row * groups * GROUP;
    switch (tile_tokens(rows - row)) {
      case 1: std::copy(from, from + groups * GROUP, to); break;
      case 2: arrange_tile<2>(from, groups, to); break;
      case 4: arrange_tile<4>(from, groups, to); break;
      case 8: arrange_tile<8>(from, groups, to); break;
      default: arrange_tile<16>(from, groups, to);
    }
  }
}

static void arrange(const QuantizedRows& rows, int64_t groups, const QuantizedRows& out) {
  arrange(rows.bf16, rows.rows, groups, out.bf16);
  if (rows.rest) arrange(rows.rest, rows.rows, groups, out.rest);
}

}  // namespace puna::path_amx
