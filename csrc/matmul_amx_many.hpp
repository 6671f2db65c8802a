// Products of many tokens, the left factor, with panels of weights, and what becomes of their sums (matmul_amx.hpp).
//
// A panel is decoded and turned in chunks that stay in the first cache, while tokens pass 32 at a time:
//
//   block of tokens     multiply     | 0 | 1 | 2 | ... | n |
//                       finish           | 0 | 1 | ...     | n |
//
// Sums of a block are finished (added to the output, or gated and rounded) a few tokens at a time between the products of
// the block after it: tile and vector instructions run side by side only where they are near each other in the program.
#pragma once

#include <algorithm>

#include "activations.hpp"
#include "decode_bf16.hpp"
#include "kernels.hpp"
#include "rounding_bf16.hpp"
#include "tiles.hpp"

namespace puna::path_amx {

constexpr int64_t BLOCK_ROWS = 256;  // rows that pass a decoded panel: they and what they become stay in the second cache
constexpr int64_t CHUNK = 18;        // parts of decoded groups: 36 KiB, which stay in the first cache
constexpr int64_t PASS = 32;         // tokens that are multiplied at a time

struct ManyScratch {
  alignas(64) uint8_t rows[4 * DECODED_BYTES];
  alignas(64) uint8_t chunk[CHUNK * DECODED_BYTES];
  alignas(64) float sums[2 * BLOCK_ROWS * PANEL];  // of all rows of a block, which may be nearly two blocks long
  alignas(64) float gates[2 * BLOCK_ROWS * PANEL];
};
static_assert(sizeof(ManyScratch) < (size_t{256} << 10));

// One a thread, whatever the format.
static inline ManyScratch& many_scratch() {
  static thread_local ManyScratch scratch;
  return scratch;
}

// Groups in the order of the sum; only the fault that breaks batch invariance on purpose begins elsewhere.
static inline int64_t group_at(const LinearArgs& a, int64_t step) {
  const int64_t g = a.first_group + step, groups = a.matrix->groups();
  return g < groups ? g : g - groups;
}

// Groups [step, step + count) of a panel, turned into pairs of inputs.
template <class Format>
static inline void decode_chunk(const LinearArgs& a, const uint8_t* w, int64_t step, int64_t count, ManyScratch& scratch) {
  for (int64_t k = 0; k < count; ++k) {
    constexpr int64_t BYTES = Format::PARTS * DECODED_BYTES;
    const uint8_t* rows = Format::decode(w, group_at(a, step + k), scratch.rows + k % 2 * BYTES);
    written();
    for (int64_t tile = 0; tile < BYTES; tile += TILE_BYTES) {
      uint8_t* out = scratch.chunk + k * BYTES + tile;
      for_columns(rows + tile, 64, [&](int64_t pair, __m512i values) { _mm512_store_si512(out + 64 * pair, values); });
    }
  }
  written();
}

// Sums of up to 32 tokens and a panel over a chunk, `meanwhile(k)` after each group. Tokens are only passing: they are
// loaded past the first cache. The order of parts is that of matmul_amx.hpp.
template <int64_t PARTS, class Meanwhile>
static inline void multiply_chunk(const LinearArgs& a, int64_t row, bool two, int64_t step, int64_t count,
                                  const ManyScratch& scratch, Meanwhile meanwhile) {
  const int64_t sixteen = 16 * a.matrix->groups() * GROUP;
  const auto load_weights = [](const uint8_t* weights) {
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, weights + TILE_BYTES, 64);
  };
  for (int64_t k = 0; k < count; ++k) {
    const int64_t at = row / 16 * sixteen + group_at(a, step + k) * GROUP * 16;
    const uint8_t* weights = scratch.chunk + k * PARTS * DECODED_BYTES;
    const auto multiply = [&](const uint16_t* tokens) {
      if (tokens) _tile_stream_loadd(4, tokens + at, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (!two) return;
      if (tokens) _tile_stream_loadd(5, tokens + at + sixteen, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    };
    load_weights(weights);
    if constexpr (PARTS == 2) multiply(a.quantized.rest);
    multiply(a.quantized.bf16);
    if constexpr (PARTS == 2) {
      load_weights(weights + DECODED_BYTES);
      multiply(nullptr);
    }
    meanwhile(k);
  }
}

// The sums of one token in what tiles leave of 32: sixteen here, sixteen others 256 further on.
static inline float* sums_of(float* block, int64_t token) { return block + token / 16 * 512 + token % 16 * 16; }

// Rows [row, row_end) pass a panel. `sums` has room for all of them; finish(row, sums) is called for each once they are there.
template <class Format, class Finish>
static inline void pass_panel(const LinearArgs& a, int64_t panel, int64_t row, int64_t row_end, float* sums,
                              ManyScratch& scratch, Finish finish) {
  const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
  const int64_t groups = a.matrix->groups();
  constexpr int64_t LONGEST = CHUNK / Format::PARTS;
  const int64_t chunks = (groups + LONGEST - 1) / LONGEST;
  const int64_t chunk = (groups + chunks - 1) / chunks;
  for (int64_t step = 0; step < groups; step += chunk) {
    const int64_t count = std::min(chunk, groups - step);
    const bool last = step + count == groups;
    const int64_t each = (PASS + count - 1) / count;  // tokens to finish after a group
    decode_chunk<Format>(a, w, step, count, scratch);
    for (int64_t first = row; first < row_end; first += PASS) {
      float* block = sums + (first - row) * PANEL;
      if (step == 0) zero_sums();
      else load_sums(block);
      float* before = block - PASS * PANEL;
      const int64_t waiting = last && first > row ? PASS : 0;
      multiply_chunk<Format::PARTS>(a, first, first + 16 < row_end, step, count, scratch, [&](int64_t k) {
        const int64_t end = std::min(waiting, (k + 1) * each);
        for (int64_t t = k * each; t < end; ++t) finish(first - PASS + t, sums_of(before, t));
      });
      store_sums(block);
      written();
    }
  }
  const int64_t rest = row + (row_end - row - 1) / PASS * PASS;
  for (int64_t t = rest; t < row_end; ++t) finish(t, sums_of(sums + (rest - row) * PANEL, t - rest));
}

// A panel's share of the bias, and which of its lanes there are.
struct PanelLanes {
  __mmask16 low, high;
  __m512 low_bias, high_bias;
  PanelLanes(const LinearArgs& a, int64_t panel) {
    const uint32_t there = lanes_of(a.matrix->out_features - panel * PANEL);
    low = static_cast<__mmask16>(there);
    high = static_cast<__mmask16>(there >> 16);
    if (!a.bias) return;
    low_bias = _mm512_maskz_loadu_ps(low, a.bias + panel * PANEL);
    high_bias = _mm512_maskz_loadu_ps(high, a.bias + panel * PANEL + 16);
  }
};

template <class Format>
static void many(const LinearArgs& a, const LinearPart& part) {
  ManyScratch& scratch = many_scratch();
  const Tiles tiles(TileShapes(16, 16));
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    const PanelLanes lanes(a, panel);
    pass_panel<Format>(a, panel, part.row, part.row_end, scratch.sums, scratch, [&](int64_t row, const float* sums) {
      float* out = a.out + row * a.out_stride + panel * PANEL;
      __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + 256);
      if (a.bias) low = _mm512_add_ps(low, lanes.low_bias), high = _mm512_add_ps(high, lanes.high_bias);
      if (a.accumulate) {
        low = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes.low, out), low);
        high = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes.high, out + 16), high);
      }
      _mm512_mask_storeu_ps(out, lanes.low, low);
      _mm512_mask_storeu_ps(out + 16, lanes.high, high);
    });
  }
}

// The first factor of a gate: a panel of it is activated while it is multiplied, into scratch.gates.
template <class Format>
static void activate_panel(const GatedArgs& a, int64_t panel, const LinearPart& part, ManyScratch& scratch) {
  const PanelLanes lanes(a.gate, panel);
  const auto activated = [&](__m512 x) { return path_avx512::activate({x}, a.kind).v; };
  pass_panel<Format>(a.gate, panel, part.row, part.row_end, scratch.gates, scratch, [&](int64_t, float* sums) {
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + 256);
    if (a.gate.bias) low = _mm512_add_ps(low, lanes.low_bias), high = _mm512_add_ps(high, lanes.high_bias);
    _mm512_store_ps(sums, activated(low));
    _mm512_store_ps(sums + 256, activated(high));
  });
}

// The second one meets it.
template <class Format>
static void gate_panel(const GatedArgs& a, int64_t panel, const LinearPart& part, ManyScratch& scratch) {
  const PanelLanes lanes(a.up, panel);
  const int64_t groups = a.gate.matrix->panel_count();
  pass_panel<Format>(a.up, panel, part.row, part.row_end, scratch.sums, scratch, [&](int64_t row, const float* sums) {
    const float* factor = scratch.gates + (sums - scratch.sums);
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + 256);
    if (a.up.bias) low = _mm512_add_ps(low, lanes.low_bias), high = _mm512_add_ps(high, lanes.high_bias);
    low = _mm512_maskz_mul_ps(lanes.low, _mm512_load_ps(factor), low);
    high = _mm512_maskz_mul_ps(lanes.high, _mm512_load_ps(factor + 256), high);
    keep_rounded(a.out, place_in_rows(a.out, groups, row, panel), low, high);
  });
}

}  // namespace puna::path_amx
