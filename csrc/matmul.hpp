// out = x @ matrix.T over packed panels (layouts.hpp; what a group of each layout means: formats.hpp).
//
// One lane is one output row; its sum runs over the groups of K in order, for one token or for many, so a token's
// result never depends on who shares the batch: whatever computes a group's integer dot product, the float operations
// that follow are the same ones in the same order. Bytes and operations a group of 32 rows x 32 inputs, q4: 640 bytes
// read, 16 byte-dot instructions and 6 float operations a token; fine bytes of groups that the token holds wide (quantize.hpp)
// come behind all others, as groups of their own. For many tokens, layouts that are not plain nibbles or bytes
// are unpacked once a panel.
#pragma once

#include "formats.hpp"
#include "kernels.hpp"
#include "layouts.hpp"
#include "matmul_float.hpp"
#include "panel_rows.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

// Four inputs of sixteen rows join the dots of TOKENS tokens.
template <Shape SHAPE, int TOKENS>
static inline void join_chunk(VB codes, const RoundedGroup* x, int input, VI* dots) {
  PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[t] = Format<SHAPE>::dot(dots[t], codes, x[t].q + input);
}

// The dot of one token, in two chains: a single one would be waited for.
template <Shape SHAPE>
static inline VI single_dot(const uint8_t* codes, const int8_t* q, int run) {
  using Weights = Format<SHAPE>;
  VI one = zero_int(), other = zero_int();
  PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
    if constexpr (Weights::RUNS == 1) {
      one = Weights::dot(one, Weights::low_chunk(codes, c), q + 4 * c);
      other = Weights::dot(other, Weights::high_chunk(codes, c), q + 4 * c + 16);
    } else {
      const VB chunk = run == 0 ? Weights::low_chunk(codes, c) : Weights::high_chunk(codes, c);
      VI& chain = c % 2 == 0 ? one : other;
      chain = Weights::dot(chain, chunk, q + 4 * c + 16 * run);
    }
  }
  return add_int(one, other);
}

// One group joins the sums of HALVES times sixteen output rows, for TOKENS tokens. A byte dot takes longer than the dots of
// eight tokens: of few tokens, halves and runs go side by side.
template <Shape SHAPE, int TOKENS, int HALVES>
static inline void integer_group(const GroupPlace& place, const RoundedGroup* x, int half, VF (*sum)[TOKENS]) {
  using Weights = Format<SHAPE>;
  constexpr int RUNS = Weights::RUNS, BESIDE = TOKENS * HALVES * RUNS <= 16 ? RUNS : 1;
  const uint8_t* codes[HALVES];
  PUNA_UNROLL for (int h = 0; h < HALVES; ++h) codes[h] = Weights::codes(place, half + h);
  PUNA_UNROLL for (int first = 0; first < RUNS; first += BESIDE) {
    VI dots[HALVES][BESIDE][TOKENS];
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int b = 0; b < BESIDE; ++b)
        PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[h][b][t] = Weights::start(x[t], first + b);
    if constexpr (TOKENS == 1) {
      PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
        PUNA_UNROLL for (int b = 0; b < BESIDE; ++b)
          dots[h][b][0] = add_int(dots[h][b][0], single_dot<SHAPE>(codes[h], x->q, first + b));
    } else {
      PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c)
        PUNA_UNROLL for (int h = 0; h < HALVES; ++h) {
          if (RUNS == 1 || first == 0) join_chunk<SHAPE, TOKENS>(Weights::low_chunk(codes[h], c), x, 4 * c, dots[h][0]);
          if (RUNS == 1 || first + BESIDE == 2)
            join_chunk<SHAPE, TOKENS>(Weights::high_chunk(codes[h], c), x, 4 * c + 16, dots[h][BESIDE - 1]);
        }
    }
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int b = 0; b < BESIDE; ++b) {
        const Factors<RUNS> factors = Weights::factors(place, half + h);
        PUNA_UNROLL for (int t = 0; t < TOKENS; ++t)
          sum[h][t] = Weights::join(sum[h][t], factors, dots[h][b][t], x[t], first + b);
      }
  }
}

// Fine bytes of wide groups join the sums of a token, behind those of all groups.
template <Shape SHAPE, int TOKENS>
[[gnu::noinline]] static void join_fine(const LinearArgs& a, const uint8_t* w, int64_t row, int t, VF (*sums)[TOKENS]) {
  const int64_t groups = a.matrix->groups();
  const RoundedGroup* fine = a.quantized.fine + row * groups;
  const uint16_t* wide = a.quantized.wide + row * (groups + 1);
  VF sum[2][1] = {{sums[0][t]}, {sums[1][t]}};
  for (int i = 1; i <= wide[0]; ++i) integer_group<SHAPE, 1, 2>(place_in<SHAPE>(w, wide[i]), fine + wide[i], 0, sum);
  sums[0][t] = sum[0][0], sums[1][t] = sum[1][0];
}

// The codes of half a group as bytes: chunks of the first inputs, then those of the last.
template <Shape SHAPE>
static inline void unpack_codes(const uint8_t* codes, uint8_t* out) {
  PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
    store_bytes(out + 64 * c, Format<SHAPE>::low_chunk(codes, c));
    store_bytes(out + 64 * (CHUNKS + c), Format<SHAPE>::high_chunk(codes, c));
  }
}

// Likewise of sixteen tokens and two runs, eight tokens at a time; codes are unpacked once for both.
template <Shape SHAPE>
static inline void sixteen_of_two_runs(const GroupPlace& place, const RoundedGroup* x, int half, VF* sum) {
  using Weights = Format<SHAPE>;
  constexpr int SOME = 8;
  const Factors<2> factors = Weights::factors(place, half);
  alignas(64) uint8_t bytes[2 * CHUNKS * 64];
  const uint8_t* kept = bytes;
  unpack_codes<SHAPE>(Weights::codes(place, half), bytes);
  hide(kept);  // that they are read back
  PUNA_UNROLL for (int at = 0; at < 16; at += SOME, x += SOME, sum += SOME) {
    VI first[SOME], last[SOME];
    PUNA_UNROLL for (int t = 0; t < SOME; ++t) first[t] = Weights::start(x[t], 0), last[t] = Weights::start(x[t], 1);
    PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
      join_chunk<SHAPE, SOME>(load_bytes(kept + 64 * c), x, 4 * c, first);
      join_chunk<SHAPE, SOME>(load_bytes(kept + 64 * (CHUNKS + c)), x, 4 * c + 16, last);
    }
    PUNA_UNROLL for (int t = 0; t < SOME; ++t)
      sum[t] = Weights::join(Weights::join(sum[t], factors, first[t], x[t], 0), factors, last[t], x[t], 1);
  }
}

// Few tokens read a panel from end to end; many take its halves one after the other, for so their sums stay in registers.
// Those of sixteen lie in memory, which costs less than unpacking codes twice. The first tile fetches what follows in time.
template <Shape SHAPE, int TOKENS>
static inline void integer_tile(const LinearArgs& a, int64_t panel, const uint8_t* w, const TokenTile& tile, bool first_tile) {
  constexpr int HALVES = TOKENS <= 4 || TOKENS > 12 ? 2 : 1;  // at a time
  constexpr int64_t BYTES = static_cast<int64_t>(SHAPE.bytes_a_group());
  const int64_t groups = a.matrix->groups();
  const RoundedGroup* x = a.quantized.groups + tile.first * groups;
  VF sums[2][TOKENS];
  for (int half = 0; half < 2; half += HALVES) {
    VF held[HALVES][TOKENS];
    VF (*sum)[TOKENS] = held;
    if constexpr (TOKENS > 12) hide(sum);  // that they would fit into registers
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sum[h][t] = zero();
    int64_t g = a.first_group;
    for (int64_t step = 0; step < groups; ++step, g = g + 1 == groups ? 0 : g + 1) {
      const GroupPlace place = place_in<SHAPE>(w, g);
      if (first_tile) {  // what the passes over both halves read, one half each
        const int64_t begin = half * BYTES / 2, end = (half + HALVES) * BYTES / 2;
        for (int64_t line = begin; line < end; line += 64) prefetch(w + g * BYTES + PREFETCH_BYTES + line);
      }
      if constexpr (TOKENS <= 4) {
        integer_group<SHAPE, TOKENS, HALVES>(place, x + g * TOKENS, half, sum);
      } else {
        PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
          if constexpr (TOKENS == 16 && SHAPE.runs == 2)
            sixteen_of_two_runs<SHAPE>(place, x + g * TOKENS, half + h, sum[h]);
          else
            integer_group<SHAPE, TOKENS, 1>(place, x + g * TOKENS, half + h, sum + h);
      }
    }
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sums[half + h][t] = sum[h][t];
  }
  const int64_t count = a.rows - tile.first < TOKENS ? a.rows - tile.first : TOKENS;
  for (int t = 0; t < count; ++t)
    if (a.quantized.wide[(tile.first + t) * (groups + 1)]) join_fine<SHAPE, TOKENS>(a, w, tile.first + t, t, sums);
  for (int64_t t = 0; t < count; ++t) store_panel(a, panel, tile.first + t, sums[0][t], sums[1][t]);
}

// `w`: the panel's groups, as SHAPE says.
template <Shape SHAPE>
static inline void integer_tile(const LinearArgs& a, int64_t panel, const uint8_t* w, const TokenTile& tile, bool first_tile) {
  switch (tile.size) {
    case 1: return integer_tile<SHAPE, 1>(a, panel, w, tile, first_tile);
    case 2: return integer_tile<SHAPE, 2>(a, panel, w, tile, first_tile);
    case 4: return integer_tile<SHAPE, 4>(a, panel, w, tile, first_tile);
#if PUNA_PATH == 512
    case 8: return integer_tile<SHAPE, 8>(a, panel, w, tile, first_tile);
    case 12: return integer_tile<SHAPE, 12>(a, panel, w, tile, first_tile);
    case 16: return integer_tile<SHAPE, 16>(a, panel, w, tile, first_tile);
#endif
  }
}

#if PUNA_PATH == 512
// A panel whose codes are bytes and whose factors are float32: what tiles of tokens, from three on, would each unpack
// again. With two of them it gained nothing.
constexpr size_t UNPACKED_BYTES = 384 << 10;  // of a thread; longer panels are unpacked by each tile

constexpr Shape unpacked(Shape shape) {
  shape.codes = Codes::bytes;
  shape.sub = shape.table = shape.zero = false;
  shape.floats = shape.unpacked = true;
  return shape;
}

// Whether unpacking once is worth its stores.
constexpr bool worth_unpacking(Shape shape) { return shape.codes != Codes::bytes && (shape.sub || shape.codes != Codes::nibbles); }

template <Shape SHAPE>
static inline void unpack_panel(const uint8_t* w, int64_t groups, uint8_t* out) {
  using Weights = Format<SHAPE>;
  constexpr Shape TO = unpacked(SHAPE);
  constexpr int64_t BYTES = static_cast<int64_t>(SHAPE.bytes_a_group());
  for (int64_t g = 0; g < groups; ++g, out += TO.group_bytes()) {
    const GroupPlace place = place_in<SHAPE>(w, g);
    for (int64_t line = 0; line < BYTES; line += 64) prefetch(w + g * BYTES + PREFETCH_BYTES + line);
    for (int half = 0; half < 2; ++half) {
      const Factors<Weights::RUNS> f = Weights::factors(place, half);
      float* factors = reinterpret_cast<float*>(out) + LANES * half;
      PUNA_UNROLL for (int run = 0; run < Weights::RUNS; ++run) {
        store(factors + PANEL * run, f.scale[run].scale);
        if constexpr (SHAPE.minimum) store(factors + PANEL * (Weights::RUNS + run), f.minimum[run]);
      }
      unpack_codes<SHAPE>(Weights::codes(place, half), out + TO.factor_bytes() + TO.code_bytes() / 2 * static_cast<size_t>(half));
    }
  }
}

struct alignas(64) UnpackedPanel {
  uint8_t bytes[UNPACKED_BYTES];
};
#endif

// `next`: what the panel was unpacked from, of the panel after it; each tile fetches some of it.
template <Shape SHAPE>
static inline void panel_tiles(const LinearArgs& a, int64_t panel, const uint8_t* w, const LinearPart& part, const uint8_t* next) {
  const uint8_t* end = next ? next + a.matrix->panel_bytes : nullptr;
  for (int64_t row = part.row; row < part.row_end;) {
    const TokenTile tile = tile_of(row, a.rows, MOST_TOKENS);
    const int64_t lines = tile.size * static_cast<int64_t>(a.matrix->panel_bytes) / (64 * (part.row_end - part.row)) + 1;
    for (int64_t i = 0; i < lines && next < end; ++i, next += 64) prefetch(next);
    integer_tile<SHAPE>(a, panel, w, tile, !SHAPE.unpacked && row == part.row);
    row = tile.first + tile.size;
  }
}

template <Shape SHAPE>
static void integer_panels(const LinearArgs& a, const LinearPart& part) {
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
#if PUNA_PATH == 512
    if constexpr (worth_unpacking(SHAPE)) {
      constexpr Shape TO = unpacked(SHAPE);
      const bool fits = static_cast<size_t>(a.matrix->groups()) * TO.group_bytes() <= UNPACKED_BYTES;
      if (fits && part.row_end - part.row > 2 * MOST_TOKENS) {
        uint8_t* bytes = thread_scratch<UnpackedPanel>().bytes;
        unpack_panel<SHAPE>(w, a.matrix->groups(), bytes);
        panel_tiles<TO>(a, panel, bytes, part, panel + 1 < part.panel_end ? w + a.matrix->panel_bytes : nullptr);
        continue;
      }
    }
#endif
    panel_tiles<SHAPE>(a, panel, w, part, nullptr);
  }
}

static void linear(const LinearArgs& a, const LinearPart& part) {
  switch (a.matrix->layout) {
    case Layout::float32: return float_panels<Single>(a, part);
    case Layout::f16: return float_panels<Half>(a, part);
    case Layout::bf16: return float_panels<BFloat>(a, part);
    default: return with_layout(a.matrix->layout, [&](auto layout) { integer_panels<shape_of(layout())>(a, part); });
  }
}

// Those of a block stay in the second cache.
static int64_t block_rows(int64_t in_features) { return (in_features <= 2048 ? 16 : 8) * MOST_TOKENS; }

}  // namespace puna::PUNA_NS
