// out = x @ matrix.T on tiles of bf16, with float32 sums (TDPBF16PS), over panels of rows (packing.hpp).
//
// An element's sum takes 32 inputs at a time, in the order of the groups; within them the instruction sums the even and
// the odd inputs apart. It depends on no other row or column, nor on which factor stands left: so few tokens multiply
// from the right, where decoded weights are used as they come out, and many from the left, where sums come out token by
// token and the turning of the weights is paid once for all of them. Both give the same bits.
//
//   few    sums [16 output rows][tokens]     = weights [16 rows][32 inputs]  x  tokens [16 pairs of inputs][tokens][2]
//   many   sums [16 tokens][16 output rows]  = tokens [16][32 inputs]        x  weights [16 pairs of inputs][16 rows][2]
//
// A product of two tiles takes 16 cycles for 16,384 operations, its loads hide behind it.
#pragma once

#include <algorithm>
#include <vector>

#include "decode_bf16.hpp"
#include "kernels.hpp"
#include "rounding_bf16.hpp"
#include "tiles.hpp"

namespace puna::path_amx {

constexpr int64_t BLOCK_ROWS = 256;  // rows that pass a decoded panel: they and what they become stay in the second cache
constexpr int64_t CHUNK = 18;        // groups of a decoded panel: 36 KiB, which stay in the first cache
constexpr int64_t RING = 8;          // decoded groups, of which LAG wait for their products
constexpr int64_t LAG = 2;
constexpr int64_t AHEAD = 4096;      // bytes of weights fetched ahead

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
  alignas(64) uint8_t chunk[CHUNK * DECODED_BYTES];
  alignas(64) float sums[2 * BLOCK_ROWS * PANEL];  // of all rows of a block, which may be nearly two blocks long
};
static_assert(sizeof(Scratch) < (size_t{256} << 10));

// Groups in the order of the sum; only the fault that breaks batch invariance on purpose begins elsewhere.
static inline int64_t group_at(const LinearArgs& a, int64_t step) {
  const int64_t g = a.first_group + step, groups = a.matrix->groups();
  return g < groups ? g : g - groups;
}

// Sixteen rows from `row` on or, with TWO, up to 32.
template <class Format, bool TWO>
static void few(const LinearArgs& a, const LinearPart& part, int64_t row, Scratch& scratch) {
  const int64_t groups = a.matrix->groups();
  const int64_t rows = std::min<int64_t>(a.rows - row, TWO ? 32 : 16);
  const int64_t first = tile_tokens(rows);
  const int64_t second = tile_tokens(rows - 16);
  const uint16_t* x = a.quantized.bf16 + row * groups * GROUP;
  const uint16_t* y = x + 16 * groups * GROUP;
  const Tiles tiles(TileShapes(first, second));
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
    const uint8_t* decoded[RING] = {};
    zero_sums();
    for (int64_t step = 0; step < groups + LAG; ++step) {
      if (step < groups) {
        const uint8_t* group = w + static_cast<size_t>(group_at(a, step)) * Format::GROUP_BYTES;
        for (size_t line = 0; line < Format::GROUP_BYTES; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(group + AHEAD + line), _MM_HINT_T0);
        decoded[step % RING] = Format::decode(group, scratch.ring + step % RING * DECODED_BYTES);
        written();
      }
      if (step < LAG) continue;
      const int64_t g = group_at(a, step - LAG);
      const uint8_t* weights = decoded[(step - LAG) % RING];
      _tile_loadd(4, weights, 64);
      _tile_loadd(6, x + g * GROUP * first, 4 * first);
      _tile_loadd(5, weights + TILE_BYTES, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (TWO) {
        _tile_loadd(7, y + g * GROUP * second, 4 * second);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
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

// Groups [step, step + count) of a panel, turned into pairs of inputs.
template <class Format>
static inline void decode_chunk(const LinearArgs& a, const uint8_t* w, int64_t step, int64_t count, Scratch& scratch) {
  for (int64_t k = 0; k < count; ++k) {
    const uint8_t* group = w + static_cast<size_t>(group_at(a, step + k)) * Format::GROUP_BYTES;
    const uint8_t* rows = Format::decode(group, scratch.ring + k % 2 * DECODED_BYTES);
    written();
    for (int half = 0; half < 2; ++half) {
      uint8_t* out = scratch.chunk + k * DECODED_BYTES + half * TILE_BYTES;
      for_columns(rows + half * TILE_BYTES, 64, [&](int64_t pair, __m512i values) { _mm512_store_si512(out + 64 * pair, values); });
    }
  }
  written();
}

// Sums of up to 32 tokens and a panel over a chunk. Tokens are only passing: they are loaded past the first cache.
static inline void multiply_chunk(const LinearArgs& a, const uint16_t* x, bool two, int64_t step, int64_t count,
                                  const Scratch& scratch) {
  const uint16_t* y = x + 16 * a.matrix->groups() * GROUP;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t at = group_at(a, step + k) * GROUP * 16;
    const uint8_t* weights = scratch.chunk + k * DECODED_BYTES;
    _tile_stream_loadd(4, x + at, 64);
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, weights + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (!two) continue;
    _tile_stream_loadd(5, y + at, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <class Format>
static void many(const LinearArgs& a, const LinearPart& part, Scratch& scratch) {
  const int64_t groups = a.matrix->groups();
  const int64_t chunks = (groups + CHUNK - 1) / CHUNK;
  const int64_t chunk = (groups + chunks - 1) / chunks;
  const Tiles tiles(TileShapes(16, 16));
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
    for (int64_t step = 0; step < groups; step += chunk) {
      const int64_t count = std::min(chunk, groups - step);
      decode_chunk<Format>(a, w, step, count, scratch);
      for (int64_t row = part.row; row < part.row_end; row += 32) {
        float* sums = scratch.sums + (chunks == 1 ? 0 : (row - part.row) * PANEL);
        if (step == 0) zero_sums();
        else load_sums(sums);
        multiply_chunk(a, a.quantized.bf16 + row * groups * GROUP, row + 16 < part.row_end, step, count, scratch);
        store_sums(sums);
        if (step + count < groups) continue;
        for (int64_t t = 0; t < std::min<int64_t>(32, part.row_end - row); ++t) {
          const float* from = sums + t / 16 * 512 + t % 16 * 16;
          finish(a, panel * PANEL, row + t, _mm512_load_ps(from));
          finish(a, panel * PANEL + 16, row + t, _mm512_load_ps(from + 256));
        }
      }
    }
  }
}

template <class Format>
static void multiply(const LinearArgs& a, const LinearPart& part) {
  static thread_local Scratch scratch;
  if (a.rows >= MANY) return many<Format>(a, part, scratch);
  int64_t row = part.row;
  for (; row + 16 < part.row_end; row += 32) few<Format, true>(a, part, row, scratch);
  if (row < part.row_end) few<Format, false>(a, part, row, scratch);
}

}  // namespace puna::path_amx
