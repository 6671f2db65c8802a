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
#include "scratch.hpp"
#include "tiles.hpp"

namespace puna::path_amx {

constexpr int64_t MOST_BLOCK_ROWS = 512;  // that pass a decoded panel
constexpr int64_t BLOCK_BYTES = int64_t{768} << 10;  // of them: they and what they become stay in the second cache
constexpr int64_t CHUNK = 18;        // parts of decoded groups: 36 KiB, which stay in the first cache
constexpr int64_t PASS = 32;         // tokens that are multiplied at a time

struct ManyScratch {
  alignas(64) uint8_t rows[4 * DECODED_BYTES];
  alignas(64) uint8_t chunk[CHUNK * DECODED_BYTES];
  alignas(64) float sums[2 * MOST_BLOCK_ROWS * PANEL];  // of all rows of a block, which may be nearly two blocks long
  alignas(64) float gates[2 * MOST_BLOCK_ROWS * PANEL];
};
static_assert(sizeof(ManyScratch) < (size_t{320} << 10));

static int64_t block_rows(int64_t in_features) {
  return MOST_BLOCK_ROWS * in_features * 2 <= BLOCK_BYTES ? MOST_BLOCK_ROWS : MOST_BLOCK_ROWS / 2;
}

// Groups in the order of the sum; only the fault that breaks batch invariance on purpose begins elsewhere.
static inline int64_t group_at(const LinearArgs& a, int64_t step) {
  const int64_t g = a.first_group + step, groups = a.matrix->groups();
  return g < groups ? g : g - groups;
}

// Groups [step, step + count) of a panel, turned into pairs of inputs.
template <class Format>
static inline void decode_chunk(const LinearArgs& a, const uint8_t* w, int64_t step, int64_t count, ManyScratch& scratch) {
  typename Format::Header header;
  for (int64_t k = 0; k < count; ++k) {
    constexpr int64_t BYTES = Format::PARTS * DECODED_BYTES;
    const uint8_t* rows = Format::decode(w, group_at(a, step + k), scratch.rows + k % 2 * BYTES, header);
    written();
    for (int64_t tile = 0; tile < BYTES; tile += TILE_BYTES) {
      uint8_t* out = scratch.chunk + k * BYTES + tile;
      for_columns(rows + tile, 64, [&](int64_t pair, __m512i values) { _mm512_store_si512(out + 64 * pair, values); });
    }
  }
  written();
}

// Packed weights that will be decoded next, line after line: into the second cache while tokens pass.
struct Ahead {
  const uint8_t* line;
  int64_t lines;
  void fetch() {
    if (lines <= 0) return;
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
    line += 64;
    --lines;
  }
};

// 32 tokens, or the first 16 of them, and a group of a panel. Tokens are only passing: they are loaded past the first
// cache. Each load comes well before its second product.
template <bool TWO>
static inline void multiply_group(const uint8_t* weights, const uint16_t* tokens, int64_t sixteen) {
  _tile_stream_loadd(4, tokens, 64);
  _tile_loadd(6, weights, 64);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (TWO) {
    _tile_stream_loadd(5, tokens + sixteen, 64);
    _tile_dpbf16ps(2, 5, 6);
  }
  _tile_loadd(7, weights + TILE_BYTES, 64);
  if constexpr (TWO) _tile_dpbf16ps(3, 5, 7);
  _tile_dpbf16ps(1, 4, 7);
}

// The same with weights and tokens of two parts each, in the order of matmul_amx.hpp: what is left of tokens, then tokens,
// with the first part of weights; tokens with the second.
template <bool TWO>
static inline void multiply_parts(const uint8_t* weights, const uint16_t* rest, const uint16_t* tokens, int64_t sixteen) {
  const auto load_weights = [](const uint8_t* part) {
    _tile_loadd(6, part, 64);
    _tile_loadd(7, part + TILE_BYTES, 64);
  };
  const auto load_tokens = [&](const uint16_t* part) {
    _tile_stream_loadd(4, part, 64);
    if constexpr (TWO) _tile_stream_loadd(5, part + sixteen, 64);
  };
  const auto multiply = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TWO) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  load_weights(weights);
  load_tokens(rest);
  multiply();
  load_tokens(tokens);
  multiply();
  load_weights(weights + DECODED_BYTES);
  multiply();
}

// Sums of up to 32 tokens and a panel over a chunk, `meanwhile(k)` after each group.
template <int64_t PARTS, bool TWO, class Meanwhile>
static inline void multiply_chunk(const LinearArgs& a, int64_t row, int64_t step, int64_t count, const ManyScratch& scratch,
                                  Meanwhile meanwhile) {
  const int64_t groups = a.matrix->groups(), sixteen = 16 * groups * GROUP, first = row / 16 * sixteen;
  const uint16_t* tokens = a.quantized.bf16 + first;
  [[maybe_unused]] const uint16_t* rest = PARTS == 2 ? a.quantized.rest + first : nullptr;
  const uint8_t* weights = scratch.chunk;
  int64_t at = group_at(a, step) * GROUP * 16;
  for (int64_t k = 0; k < count; ++k, weights += PARTS * DECODED_BYTES) {
    if constexpr (PARTS == 2) multiply_parts<TWO>(weights, rest + at, tokens + at, sixteen);
    else multiply_group<TWO>(weights, tokens + at, sixteen);
    at += GROUP * 16;
    if (at == sixteen) at = 0;
    meanwhile(k);
  }
}

// The sums of one token in what tiles leave of 32: sixteen here, sixteen others 256 further on.
static inline float* sums_of(float* block, int64_t token) { return block + token / 16 * 512 + token % 16 * 16; }

static inline const uint8_t* panel_at(const Matrix& matrix, int64_t panel) {
  return panel < matrix.panel_count() ? matrix.panels + static_cast<size_t>(panel) * matrix.panel_bytes : nullptr;
}

// Rows [row, row_end) pass a panel. `sums` has room for all of them; finish(row, sums) is called for each once they are there.
// `after` is the panel that will be wanted next, or null.
template <class Format, class Finish>
static inline void pass_panel(const LinearArgs& a, int64_t panel, const uint8_t* after, int64_t row, int64_t row_end, float* sums,
                              ManyScratch& scratch, Finish finish) {
  const uint8_t* w = panel_at(*a.matrix, panel);
  const int64_t groups = a.matrix->groups();
  constexpr int64_t LONGEST = CHUNK / Format::PARTS;
  const int64_t chunks = (groups + LONGEST - 1) / LONGEST;
  const int64_t chunk = (groups + chunks - 1) / chunks;
  for (int64_t step = 0; step < groups; step += chunk) {
    const int64_t count = std::min(chunk, groups - step);
    const bool last = step + count == groups;
    const int64_t each = (PASS + count - 1) / count;  // tokens to finish after a group
    decode_chunk<Format>(a, w, step, count, scratch);
    const uint8_t* next = last ? after : w + (step + count) * Format::BYTES;
    Ahead ahead{next, next ? chunk * Format::BYTES / 64 : 0};
    for (int64_t first = row; first < row_end; first += PASS) {
      float* block = sums + (first - row) * PANEL;
      if (step == 0) zero_sums();
      else load_sums(block);
      const auto multiply = [&](auto meanwhile) {
        if (first + 16 < row_end) multiply_chunk<Format::PARTS, true>(a, first, step, count, scratch, meanwhile);
        else multiply_chunk<Format::PARTS, false>(a, first, step, count, scratch, meanwhile);
      };
      if (last && first > row) {
        float* before = block - PASS * PANEL;
        multiply([&](int64_t k) {
          ahead.fetch();
          const int64_t end = std::min(PASS, (k + 1) * each);
          for (int64_t t = k * each; t < end; ++t) finish(first - PASS + t, sums_of(before, t));
        });
      } else {
        multiply([&](int64_t) { ahead.fetch(); });
      }
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
  ManyScratch& scratch = thread_scratch<ManyScratch>();
  const Tiles tiles(TileShapes(16, 16));
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    const PanelLanes lanes(a, panel);
    pass_panel<Format>(a, panel, panel_at(*a.matrix, panel + 1), part.row, part.row_end,
                       scratch.sums, scratch, [&](int64_t row, const float* sums) {
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
  pass_panel<Format>(a.gate, panel, panel_at(*a.up.matrix, panel), part.row, part.row_end,
                     scratch.gates, scratch, [&](int64_t, float* sums) {
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
  pass_panel<Format>(a.up, panel, panel_at(*a.gate.matrix, panel + 1), part.row, part.row_end,
                     scratch.sums, scratch, [&](int64_t row, const float* sums) {
    const float* factor = scratch.gates + (sums - scratch.sums);
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + 256);
    if (a.up.bias) low = _mm512_add_ps(low, lanes.low_bias), high = _mm512_add_ps(high, lanes.high_bias);
    low = _mm512_maskz_mul_ps(lanes.low, _mm512_load_ps(factor), low);
    high = _mm512_maskz_mul_ps(lanes.high, _mm512_load_ps(factor + 256), high);
    keep_rounded(a.out, place_in_rows(a.out, groups, row, panel), low, high);
  });
}

}  // namespace puna::path_amx
