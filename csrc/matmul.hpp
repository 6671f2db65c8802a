// out = x @ matrix.T over packed panels (layouts.hpp; what a group of each layout means: formats.hpp).
//
// One lane is one output row; its sum runs over the groups of K in order, for one token or for many, so a token's
// result never depends on who shares the batch: whatever computes a group's integer dot product, the float operations
// that follow are the same ones in the same order. Bytes and operations a group of 32 rows x 32 inputs, q4: 640 bytes
// read, 16 byte-dot instructions and 8 float operations a token; a group that the token holds wide (quantize.hpp)
// takes its fine bytes in a second pass over the same weights.
#pragma once

#include "formats.hpp"
#include "kernels.hpp"
#include "layouts.hpp"
#include "matmul_float.hpp"
#include "panel_rows.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

template <int TOKENS>
static inline bool any_wide(const uint8_t* wide) {
  uint64_t all = 0;
  std::memcpy(&all, wide, TOKENS < 8 ? TOKENS : 8);
  if constexpr (TOKENS == 12) {
    uint32_t more;
    std::memcpy(&more, wide + 8, sizeof more);
    all |= more;
  }
  return all != 0;
}

// Four inputs of sixteen rows join the dots of TOKENS tokens.
template <Layout LAYOUT, int TOKENS>
static inline void join_chunk(VB codes, const RoundedGroup* x, int input, VI* dots) {
  PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[t] = Format<LAYOUT>::dot(dots[t], codes, four_bytes(x[t].q + input));
}

// The dot of one token, in two chains: a single one would be waited for.
template <Layout LAYOUT>
static inline VI single_dot(const uint8_t* codes, const int8_t* q, int run) {
  using Weights = Format<LAYOUT>;
  VI one = zero_int(), other = zero_int();
  PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
    if constexpr (Weights::RUNS == 1) {
      one = Weights::dot(one, Weights::low_chunk(codes, c), four_bytes(q + 4 * c));
      other = Weights::dot(other, Weights::high_chunk(codes, c), four_bytes(q + 4 * c + 16));
    } else {
      const VB chunk = run == 0 ? Weights::low_chunk(codes, c) : Weights::high_chunk(codes, c);
      VI& chain = c % 2 == 0 ? one : other;
      chain = Weights::dot(chain, chunk, four_bytes(q + 4 * c + 16 * run));
    }
  }
  return add_int(one, other);
}

// What a tile holds in registers. It lies in memory while wide groups are looked at, for otherwise the compiler would
// hold it there all the time.
template <int TOKENS>
struct Held {
  VI dots[TOKENS];
  VF sums[TOKENS];
};

template <Layout LAYOUT, int TOKENS>
[[gnu::noinline]] static void widen(const LinearArgs& a, const uint8_t* codes, const RoundedGroup* x, int64_t g, int64_t row,
                                    int run, Held<TOKENS>& held) {
  const int64_t groups = a.matrix->groups();
  const uint8_t* wide = a.quantized.wide + g * a.quantized.stride + row;
  for (int t = 0; t < TOKENS; ++t) {
    const int8_t* fine = a.quantized.fine + ((row + t) * groups + g) * GROUP;
    if (wide[t]) held.dots[t] = Format<LAYOUT>::widen(held.dots[t], x[t], codes, fine, run);
  }
}

// One group joins the sums of sixteen output rows, for TOKENS tokens; `row` is the first of them. Where sixteen inputs
// have factors of their own, the first ones join before the last ones are looked at, so that dots of one run are held.
template <Layout LAYOUT, int TOKENS>
static inline void integer_group(const LinearArgs& a, const GroupPlace& place, const RoundedGroup* x, int64_t g, int64_t row,
                                 int half, VF* sum) {
  using Weights = Format<LAYOUT>;
  constexpr int RUNS = Weights::RUNS;
  const uint8_t* codes = Weights::codes(place, half);
  const uint8_t* wide = a.quantized.wide + g * a.quantized.stride + row;
  VF first[TOKENS];  // of two runs
  PUNA_UNROLL for (int run = 0; run < RUNS; ++run) {
    VI dots[TOKENS];
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[t] = Weights::start(x[t], run);
    if constexpr (TOKENS == 1) {
      dots[0] = add_int(dots[0], single_dot<LAYOUT>(codes, x->q, run));
    } else {
      PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
        if (RUNS == 1 || run == 0) join_chunk<LAYOUT, TOKENS>(Weights::low_chunk(codes, c), x, 4 * c, dots);
        if (RUNS == 1 || run == 1) join_chunk<LAYOUT, TOKENS>(Weights::high_chunk(codes, c), x, 4 * c + 16, dots);
      }
    }
    if (any_wide<TOKENS>(wide)) [[unlikely]] {
      Held<TOKENS> held;
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) held.dots[t] = dots[t], held.sums[t] = sum[t];
      widen<LAYOUT, TOKENS>(a, codes, x, g, row, run, held);
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[t] = held.dots[t], sum[t] = held.sums[t];
    }
    const Factors<RUNS> factors = Weights::factors(place, half);
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) {
      if constexpr (RUNS == 1) sum[t] = Weights::join(sum[t], factors, dots[t], x[t]);
      else if (run == 0) first[t] = Weights::times_first(factors, dots[t]);
      else sum[t] = Weights::join(sum[t], factors, first[t], dots[t], x[t]);
    }
  }
}

// Few tokens read a panel from end to end; many take its halves one after the other, for so their sums stay in
// registers. The first tile fetches what follows in time.
template <Layout LAYOUT, int TOKENS>
static inline void integer_tile(const LinearArgs& a, int64_t panel, const TokenTile& tile, bool first_tile) {
  constexpr int HALVES = TOKENS <= 4 ? 2 : 1;  // at a time
  constexpr int64_t BYTES = static_cast<int64_t>(shape_of(LAYOUT).bytes_a_group());
  const int64_t groups = a.matrix->groups();
  const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
  const RoundedGroup* x = a.quantized.groups + tile.first * groups;
  VF sums[2][TOKENS];
  for (int half = 0; half < 2; half += HALVES) {
    VF sum[HALVES][TOKENS];
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sum[h][t] = zero();
    int64_t g = a.first_group;
    for (int64_t step = 0; step < groups; ++step, g = g + 1 == groups ? 0 : g + 1) {
      const GroupPlace place = place_of<LAYOUT>(w, g);
      if (first_tile) {  // what the passes over both halves read, one half each
        const int64_t begin = half * BYTES / 2, end = (half + HALVES) * BYTES / 2;
        for (int64_t line = begin; line < end; line += 64) prefetch(w + g * BYTES + PREFETCH_BYTES + line);
      }
      PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
        integer_group<LAYOUT, TOKENS>(a, place, x + g * TOKENS, g, tile.first, half + h, sum[h]);
    }
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sums[half + h][t] = sum[h][t];
  }
  const int64_t count = a.rows - tile.first < TOKENS ? a.rows - tile.first : TOKENS;
  for (int64_t t = 0; t < count; ++t) store_panel(a, panel, tile.first + t, sums[0][t], sums[1][t]);
}

template <Layout LAYOUT>
static inline void integer_tile(const LinearArgs& a, int64_t panel, const TokenTile& tile, bool first_tile) {
  switch (tile.size) {
    case 1: return integer_tile<LAYOUT, 1>(a, panel, tile, first_tile);
    case 2: return integer_tile<LAYOUT, 2>(a, panel, tile, first_tile);
    case 4: return integer_tile<LAYOUT, 4>(a, panel, tile, first_tile);
#if PUNA_PATH == 512
    case 8: return integer_tile<LAYOUT, 8>(a, panel, tile, first_tile);
    case 12: return integer_tile<LAYOUT, 12>(a, panel, tile, first_tile);
#endif
  }
}

template <Layout LAYOUT>
static void integer_panels(const LinearArgs& a, const LinearPart& part) {
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    for (int64_t row = part.row; row < part.row_end;) {
      const TokenTile tile = tile_of(row, a.rows, MOST_TOKENS);
      integer_tile<LAYOUT>(a, panel, tile, row == part.row);
      row = tile.first + tile.size;
    }
  }
}

static void linear(const LinearArgs& a, const LinearPart& part) {
  switch (a.matrix->layout) {
    case Layout::float32: return float_panels<Single>(a, part);
    case Layout::f16: return float_panels<Half>(a, part);
    case Layout::bf16: return float_panels<BFloat>(a, part);
    default: return with_layout(a.matrix->layout, [&](auto layout) { integer_panels<layout()>(a, part); });
  }
}

}  // namespace puna::PUNA_NS
