// out = x @ matrix.T over packed panels (layouts.hpp; what a group of each layout means: formats.hpp).
//
// One lane is one output row; its sum runs over the groups of K in order, for one token or for many, so a token's
// result never depends on who shares the batch: whatever computes a group's integer dot product, the float operations
// that follow are the same ones in the same order. Bytes and operations a group of 32 rows x 32 inputs, q4: 640 bytes
// read, 16 byte-dot instructions and 8 float operations a token; a group that the token holds wide (quantize.hpp)
// takes its fine bytes in a second pass over the same weights. For many tokens, layouts that are not plain nibbles or bytes
// are unpacked once a panel.
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
template <Shape SHAPE, int TOKENS>
static inline void join_chunk(VB codes, const RoundedGroup* x, int input, VI* dots) {
  PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[t] = Format<SHAPE>::dot(dots[t], codes, four_bytes(x[t].q + input));
}

// The dot of one token, in two chains: a single one would be waited for.
template <Shape SHAPE>
static inline VI single_dot(const uint8_t* codes, const int8_t* q, int run) {
  using Weights = Format<SHAPE>;
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

template <Shape SHAPE, int TOKENS>
[[gnu::noinline]] static void widen(const LinearArgs& a, const uint8_t* codes, const RoundedGroup* x, int64_t g, int64_t row,
                                    int run, Held<TOKENS>& held) {
  const int64_t groups = a.matrix->groups();
  const uint8_t* wide = a.quantized.wide + g * a.quantized.stride + row;
  for (int t = 0; t < TOKENS; ++t) {
    const int8_t* fine = a.quantized.fine + ((row + t) * groups + g) * GROUP;
    if (wide[t]) held.dots[t] = Format<SHAPE>::widen(held.dots[t], x[t], codes, fine, run);
  }
}

// One group joins the sums of sixteen output rows, for TOKENS tokens; `row` is the first of them. Where sixteen inputs
// have factors of their own, the first ones join before the last ones are looked at, so that dots of one run are held.
template <Shape SHAPE, int TOKENS>
static inline void integer_group(const LinearArgs& a, const GroupPlace& place, const RoundedGroup* x, int64_t g, int64_t row,
                                 int half, VF* sum) {
  using Weights = Format<SHAPE>;
  constexpr int RUNS = Weights::RUNS;
  const uint8_t* codes = Weights::codes(place, half);
  const uint8_t* wide = a.quantized.wide + g * a.quantized.stride + row;
  VF first[TOKENS];  // of two runs
  PUNA_UNROLL for (int run = 0; run < RUNS; ++run) {
    VI dots[TOKENS];
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[t] = Weights::start(x[t], run);
    if constexpr (TOKENS == 1) {
      dots[0] = add_int(dots[0], single_dot<SHAPE>(codes, x->q, run));
    } else {
      PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
        if (RUNS == 1 || run == 0) join_chunk<SHAPE, TOKENS>(Weights::low_chunk(codes, c), x, 4 * c, dots);
        if (RUNS == 1 || run == 1) join_chunk<SHAPE, TOKENS>(Weights::high_chunk(codes, c), x, 4 * c + 16, dots);
      }
    }
    if (any_wide<TOKENS>(wide)) [[unlikely]] {
      Held<TOKENS> held;
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) held.dots[t] = dots[t], held.sums[t] = sum[t];
      widen<SHAPE, TOKENS>(a, codes, x, g, row, run, held);
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
template <Shape SHAPE, int TOKENS>
static inline void integer_tile(const LinearArgs& a, int64_t panel, const uint8_t* w, const TokenTile& tile, bool first_tile) {
  constexpr int HALVES = TOKENS <= 4 ? 2 : 1;  // at a time
  constexpr int64_t BYTES = static_cast<int64_t>(SHAPE.bytes_a_group());
  const int64_t groups = a.matrix->groups();
  const RoundedGroup* x = a.quantized.groups + tile.first * groups;
  VF sums[2][TOKENS];
  for (int half = 0; half < 2; half += HALVES) {
    VF sum[HALVES][TOKENS];
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sum[h][t] = zero();
    int64_t g = a.first_group;
    for (int64_t step = 0; step < groups; ++step, g = g + 1 == groups ? 0 : g + 1) {
      const GroupPlace place = place_in<SHAPE>(w, g);
      if (first_tile) {  // what the passes over both halves read, one half each
        const int64_t begin = half * BYTES / 2, end = (half + HALVES) * BYTES / 2;
        for (int64_t line = begin; line < end; line += 64) prefetch(w + g * BYTES + PREFETCH_BYTES + line);
      }
      PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
        integer_group<SHAPE, TOKENS>(a, place, x + g * TOKENS, g, tile.first, half + h, sum[h]);
    }
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sums[half + h][t] = sum[h][t];
  }
  const int64_t count = a.rows - tile.first < TOKENS ? a.rows - tile.first : TOKENS;
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
#endif
  }
}

#if PUNA_PATH == 512
// A panel whose codes are bytes and whose factors are float32: what tiles of tokens, from three on, would each unpack
// again. With two of them it gained nothing.
constexpr size_t UNPACKED_BYTES = 384 << 10;  // of a thread; longer panels are unpacked by each tile

constexpr Shape unpacked(Shape shape) {
  shape.codes = Codes::bytes;
  shape.sub = shape.table = false;
  shape.floats = true;
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
        store(factors + PANEL * run, f.scale[run]);
        if constexpr (SHAPE.minimum) store(factors + PANEL * (Weights::RUNS + run), f.minimum[run]);
      }
      const uint8_t* codes = Weights::codes(place, half);
      uint8_t* bytes = out + TO.factor_bytes() + TO.code_bytes() / 2 * static_cast<size_t>(half);
      PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
        store_bytes(bytes + 64 * c, Weights::low_chunk(codes, c));
        store_bytes(bytes + 64 * (CHUNKS + c), Weights::high_chunk(codes, c));
      }
    }
  }
}

static inline uint8_t* unpacked_scratch() {
  alignas(64) static thread_local uint8_t scratch[UNPACKED_BYTES];
  return scratch;
}
#endif

template <Shape SHAPE>
static inline void panel_tiles(const LinearArgs& a, int64_t panel, const uint8_t* w, const LinearPart& part, bool near) {
  for (int64_t row = part.row; row < part.row_end;) {
    const TokenTile tile = tile_of(row, a.rows, MOST_TOKENS);
    integer_tile<SHAPE>(a, panel, w, tile, !near && row == part.row);
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
        unpack_panel<SHAPE>(w, a.matrix->groups(), unpacked_scratch());
        panel_tiles<TO>(a, panel, unpacked_scratch(), part, true);
        continue;
      }
    }
#endif
    panel_tiles<SHAPE>(a, panel, w, part, false);
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

static int64_t block_rows(int64_t) { return 8 * MOST_TOKENS; }

}  // namespace puna::PUNA_NS
