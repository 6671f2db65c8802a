// out = x @ matrix.T over packed panels (layouts: packing.hpp).
//
// One lane is one output row; its sum runs over the groups of K in order, for one token or for many, so a token's
// result never depends on who shares the batch: whatever computes a group's integer dot product, the float operations
// that follow are the same ones in the same order. Bytes and operations a group of 32 rows x 32 inputs, q4: 640 bytes
// read, 16 byte-dot instructions and 8 float operations a token; a group that the token holds wide (quantize.hpp)
// takes its fine bytes in a second pass over the same weights. Sixteen tokens and more go through matmul_amx.hpp where
// the processor has tiles.
#pragma once

#include "kernels.hpp"
#include "matmul_float.hpp"
#include "packing.hpp"
#include "panel_rows.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

static inline int32_t four_bytes(const int8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Dot products of one half panel (16 rows) and one group with the integers of one token.
static inline VI q4_dot(const uint8_t* chunks, const int8_t* q) {
  VI low = zero_int();
  VI high = zero_int();
  for (int c = 0; c < 4; ++c) {
    const VB bytes = load_bytes(chunks + 64 * c);
    low = dot_nibbles(low, low_nibbles(bytes), four_bytes(q + 4 * c));
    high = dot_nibbles(high, high_nibbles(bytes), four_bytes(q + 4 * c + 16));
  }
  return add_int(low, high);
}

static inline VI q8_dot(const uint8_t* chunks, const int8_t* q) {
  VI even = zero_int();
  VI odd = zero_int();
  for (int c = 0; c < 8; c += 2) {
    even = dot_bytes(even, load_bytes(chunks + 64 * c), four_bytes(q + 4 * c));
    odd = dot_bytes(odd, load_bytes(chunks + 64 * c + 64), four_bytes(q + 4 * c + 4));
  }
  return add_int(even, odd);
}

// A format is what a packed group of integers means: how its dot product with a token's integers is taken, and how it
// joins the token's float sum.
struct Q4 {
  static constexpr size_t GROUP_BYTES = Q4_GROUP_BYTES;
  static const uint8_t* chunks(const uint8_t* group, int half) { return group + 4 * PANEL + 256 * half; }
  static VI dot(const uint8_t* chunks, const int8_t* q) { return q4_dot(chunks, q); }
  template <int TOKENS>
  static inline void dots(const uint8_t* chunks, const RoundedGroup* x, VI* out) {
    PUNA_UNROLL for (int c = 0; c < 4; ++c) {
      const VB bytes = load_bytes(chunks + 64 * c);
      const VB first = low_nibbles(bytes);
      const VB second = high_nibbles(bytes);
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) out[t] = dot_nibbles(out[t], first, four_bytes(x[t].q + 4 * c));
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t)
        out[t] = dot_nibbles(out[t], second, four_bytes(x[t].q + 4 * c + 16));
    }
  }
  // sum + scale * s * dot + minimum * s * (sum of the token's integers)
  struct Factors { VF scale, minimum; };
  static Factors factors(const uint8_t* group, int half) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(group);
    return {load_half(halves + LANES * half), load_half(halves + PANEL + LANES * half)};
  }
  static VF join(VF sum, const Factors& f, VI dot, const RoundedGroup& x) {
    sum = fma(to_float(dot), mul(f.scale, set1(x.scale)), sum);
    return fma(f.minimum, set1(x.offset), sum);
  }
};

struct Q8 {
  static constexpr size_t GROUP_BYTES = Q8_GROUP_BYTES;
  static const uint8_t* chunks(const uint8_t* group, int half) { return group + 2 * PANEL + 512 * half; }
  static VI dot(const uint8_t* chunks, const int8_t* q) { return q8_dot(chunks, q); }
  template <int TOKENS>
  static inline void dots(const uint8_t* chunks, const RoundedGroup* x, VI* out) {
    PUNA_UNROLL for (int c = 0; c < 8; ++c) {
      const VB bytes = load_bytes(chunks + 64 * c);
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) out[t] = dot_bytes(out[t], bytes, four_bytes(x[t].q + 4 * c));
    }
  }
  // Weights are stored as q + 128: 128 times the sum of the token's integers comes off again.
  struct Factors { VF scale; };
  static Factors factors(const uint8_t* group, int half) {
    return {load_half(reinterpret_cast<const uint16_t*>(group) + LANES * half)};
  }
  static VF join(VF sum, const Factors& f, VI dot, const RoundedGroup& x) {
    dot = add_int(dot, set1_int(-128 * x.sum));
    return fma(to_float(dot), mul(f.scale, set1(x.scale)), sum);
  }
};

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

// One group joins the sums of sixteen output rows, for TOKENS tokens; `row` is the first of them.
template <class Format, int TOKENS>
static inline void integer_group(const LinearArgs& a, const uint8_t* group, const RoundedGroup* x, int64_t g, int64_t row,
                                 int half, VF* sum) {
  const uint8_t* chunks = Format::chunks(group, half);
  VI dots[TOKENS];
  if constexpr (TOKENS == 1) {
    dots[0] = Format::dot(chunks, x->q);
  } else {
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) dots[t] = zero_int();
    Format::template dots<TOKENS>(chunks, x, dots);
  }
  const uint8_t* wide = a.quantized.wide + g * a.quantized.stride + row;
  if (any_wide<TOKENS>(wide)) [[unlikely]] {
    const int64_t groups = a.matrix->groups();
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t)
      if (wide[t]) dots[t] = add_int(times_128(dots[t]), Format::dot(chunks, a.quantized.fine + ((row + t) * groups + g) * GROUP));
  }
  const auto factors = Format::factors(group, half);
  PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sum[t] = Format::join(sum[t], factors, dots[t], x[t]);
}

// Few tokens read a panel from end to end; many take its halves one after the other, for so their sums stay in
// registers. The first tile fetches what follows in time.
template <class Format, int TOKENS>
static inline void integer_tile(const LinearArgs& a, int64_t panel, const TokenTile& tile, bool first_tile) {
  constexpr int HALVES = TOKENS <= 4 ? 2 : 1;  // at a time
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
      const uint8_t* group = w + static_cast<size_t>(g) * Format::GROUP_BYTES;
      if (first_tile && half == 0)
        for (size_t line = 0; line < Format::GROUP_BYTES; line += 64) prefetch(group + PREFETCH_BYTES + line);
      PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
        integer_group<Format, TOKENS>(a, group, x + g * TOKENS, g, tile.first, half + h, sum[h]);
    }
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h)
      PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) sums[half + h][t] = sum[h][t];
  }
  const int64_t count = a.rows - tile.first < TOKENS ? a.rows - tile.first : TOKENS;
  for (int64_t t = 0; t < count; ++t) store_panel(a, panel, tile.first + t, sums[0][t], sums[1][t]);
}

template <class Format>
static inline void integer_tile(const LinearArgs& a, int64_t panel, const TokenTile& tile, bool first_tile) {
  switch (tile.size) {
    case 1: return integer_tile<Format, 1>(a, panel, tile, first_tile);
    case 2: return integer_tile<Format, 2>(a, panel, tile, first_tile);
    case 4: return integer_tile<Format, 4>(a, panel, tile, first_tile);
#if PUNA_PATH == 512
    case 8: return integer_tile<Format, 8>(a, panel, tile, first_tile);
    case 12: return integer_tile<Format, 12>(a, panel, tile, first_tile);
#endif
  }
}

template <class Format>
static void integer_panels(const LinearArgs& a, const LinearPart& part) {
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    for (int64_t row = part.row; row < part.row_end;) {
      const TokenTile tile = tile_of(row, a.rows, MOST_TOKENS);
      integer_tile<Format>(a, panel, tile, row == part.row);
      row = tile.first + tile.size;
    }
  }
}

static void linear(const LinearArgs& a, const LinearPart& part) {
  switch (a.matrix->layout) {
    case Layout::float32: return float_panels<Single>(a, part);
    case Layout::f16: return float_panels<Half>(a, part);
    case Layout::bf16: return float_panels<BFloat>(a, part);
    case Layout::q4: return integer_panels<Q4>(a, part);
    case Layout::q8: return integer_panels<Q8>(a, part);
    case Layout::q4_rows:
    case Layout::q8_rows:
    case Layout::bf16_rows: return;  // of matmul_amx.hpp
  }
}

}  // namespace puna::PUNA_NS
