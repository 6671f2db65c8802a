// out = x @ matrix.T on tiles of bf16, with float32 sums (TDPBF16PS), over panels of rows (layouts.hpp).
//
// An element's sum takes 32 inputs at a time, in the order of the groups; within them the instruction sums the even and
// the odd inputs apart. It depends on no other row or column, nor on which factor stands left: so few tokens multiply
// from the right, where decoded weights are used as they come out, and many from the left, where sums come out token by
// token and the turning of the weights is paid once for all of them. Both give the same bits.
//
//   few    sums [16 output rows][tokens]     = weights [16 rows][32 inputs]  x  tokens [16 pairs of inputs][tokens][2]
//   many   sums [16 tokens][16 output rows]  = tokens [16][32 inputs]        x  weights [16 pairs of inputs][16 rows][2]
//
// A product of two tiles takes 16 cycles for 16,384 operations, its loads hide behind it. Weights of two parts (f16, exactly)
// and tokens of two take three of them, in this order: the weights' first part by the tokens' rest, by the tokens, and
// the weights' second part by the tokens. What is left out, rest by rest, is below 2^-16 of a term.
#pragma once

#include <algorithm>
#include <vector>

#include "decode_bf16.hpp"
#include "kernels.hpp"
#include "matmul_amx_many.hpp"
#include "rounding_bf16.hpp"
#include "scratch.hpp"
#include "tiles.hpp"

namespace puna::path_amx {

constexpr int64_t RING = 8;          // parts of decoded groups; LAG groups wait for their products
constexpr int64_t LAG = 2;
constexpr int64_t AHEAD = 4096;      // bytes of weights fetched ahead, where decoding does not fetch them itself

// Sixteen sums of a token, those of the output rows from `n` on.
static inline void finish(const LinearArgs& a, int64_t n, int64_t token, __m512 sums) {
  const int64_t left = std::clamp<int64_t>(a.matrix->out_features - n, 0, 16);
  const __mmask16 there = static_cast<__mmask16>((1u << left) - 1u);
  float* out = a.out + token * a.out_stride + n;
  if (a.bias) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(there, a.bias + n));
  if (a.accumulate) sums = _mm512_add_ps(_mm512_maskz_loadu_ps(there, out), sums);
  _mm512_mask_storeu_ps(out, there, sums);
}

struct Scratch {
  alignas(64) uint8_t ring[RING * DECODED_BYTES];
  alignas(64) float sums[32 * PANEL];
};

// Sixteen rows from `row` on or, with TWO, up to 32.
template <class Format, bool TWO>
static void few(const LinearArgs& a, const LinearPart& part, int64_t row, Scratch& scratch) {
  constexpr int64_t HELD = RING / Format::PARTS, BYTES = Format::PARTS * DECODED_BYTES;
  const int64_t groups = a.matrix->groups();
  const int64_t rows = std::min<int64_t>(a.rows - row, TWO ? 32 : 16);
  const int64_t first = tile_tokens(rows);
  const int64_t second = tile_tokens(rows - 16);
  const Tiles tiles(TileShapes(first, second));
  const auto load_tokens = [&](const uint16_t* tokens, int64_t g) {
    const uint16_t* x = tokens + row * groups * GROUP;
    _tile_loadd(6, x + g * GROUP * first, 4 * first);
    if constexpr (TWO) _tile_loadd(7, x + 16 * groups * GROUP + g * GROUP * second, 4 * second);
  };
  const auto load_weights = [](const uint8_t* weights) {
    _tile_loadd(4, weights, 64);
    _tile_loadd(5, weights + TILE_BYTES, 64);
  };
  const auto multiply = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (TWO) {
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
    const uint8_t* decoded[HELD] = {};
    typename Format::Header header;
    zero_sums();
    for (int64_t step = 0; step < groups + LAG; ++step) {
      if (step < groups) {
        const int64_t g = group_at(a, step);
        for (int64_t line = 0; line < Format::BYTES && Format::PARTS == 1; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(w + g * Format::BYTES + AHEAD + line), _MM_HINT_T0);
        decoded[step % HELD] = Format::decode(w, g, scratch.ring + step % HELD * BYTES, header);
        written();
      }
      if (step < LAG) continue;
      const int64_t g = group_at(a, step - LAG);
      const uint8_t* weights = decoded[(step - LAG) % HELD];
      load_weights(weights);
      if constexpr (Format::PARTS == 2) {
        load_tokens(a.quantized.rest, g);
        multiply();
      }
      load_tokens(a.quantized.bf16, g);
      multiply();
      if constexpr (Format::PARTS == 2) {
        load_weights(weights + DECODED_BYTES);
        multiply();
      }
    }
    store_sums(scratch.sums);
    for (int half = 0; half < 2; ++half)
      for (int64_t begin = 0; begin < rows; begin += 16)
        for_columns(scratch.sums + 512 * half + 16 * begin, 64, [&](int64_t t, __m512i sums) {
          if (begin + t < rows) finish(a, panel * PANEL + 16 * half, row + begin + t, _mm512_castsi512_ps(sums));
        });
  }
}

template <class Format>
static void multiply(const LinearArgs& a, const LinearPart& part) {
  if (a.rows >= MANY) return many<Format>(a, part);
  Scratch& scratch = thread_scratch<Scratch>();
  int64_t row = part.row;
  for (; row + 16 < part.row_end; row += 32) few<Format, true>(a, part, row, scratch);
  if (row < part.row_end) few<Format, false>(a, part, row, scratch);
}

// A part of the product of a matrix that is packed by rows.
static void multiply(const LinearArgs& a, const LinearPart& part) {
  with_format(*a.matrix, [&](auto format) { multiply<decltype(format)>(a, part); });
}

}  // namespace puna::path_amx
