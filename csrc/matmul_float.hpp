// out = x @ matrix.T over panels of real numbers: float32, or halves (f16, bf16) that are widened in registers, exactly.
//
// A lane is one output row; its sum runs over the inputs in order, one multiply-add each, for one token or for many.
// Widening is exact, so a matrix has the same products in two bytes a weight as in four. Bytes and operations an input
// of 32 rows, halves: one line of 64 bytes read, 4 instructions to widen it, 1 broadcast and 2 multiply-adds a token.
// One token waits for memory, and halves are half of it; a tile of many shares the widening. VDPBF16PS would round the
// tokens to bf16 too, and is slower here (docs/decisions.md).
#pragma once

#include "layouts.hpp"
#include "panel_rows.hpp"

namespace puna::PUNA_NS {

// A format: the bytes of one input's 32 rows, and how those of one half become numbers.
struct Single {
  static constexpr size_t INPUT_BYTES = F32_GROUP_BYTES / GROUP;
  static VF weights(const uint8_t* input, int half) { return load(reinterpret_cast<const float*>(input) + LANES * half); }
};
struct Half {
  static constexpr size_t INPUT_BYTES = HALF_GROUP_BYTES / GROUP;
  static VF weights(const uint8_t* input, int half) {
    return load_half(reinterpret_cast<const uint16_t*>(input) + LANES * half);
  }
};
struct BFloat {
  static constexpr size_t INPUT_BYTES = HALF_GROUP_BYTES / GROUP;
  static VF weights(const uint8_t* input, int half) {
    return load_bf16(reinterpret_cast<const uint16_t*>(input) + LANES * half);
  }
};

// Inputs [begin, end) join the sums of halves [half, half + HALVES) for TOKENS tokens.
template <class Format, int TOKENS, int HALVES, bool FETCH>
static inline void float_inputs(const LinearArgs& a, const uint8_t* panel, const float* x, int64_t begin, int64_t end,
                                int half, VF (*sum)[HALVES]) {
  const int64_t width = a.matrix->in_features;
#pragma GCC unroll 4
  for (int64_t k = begin; k < end; ++k) {
    const uint8_t* input = panel + static_cast<size_t>(k) * Format::INPUT_BYTES;
    if constexpr (FETCH)
      for (size_t line = 0; line < Format::INPUT_BYTES; line += 64) prefetch(input + PREFETCH_BYTES + line);
    VF weights[HALVES];
    PUNA_UNROLL for (int h = 0; h < HALVES; ++h) weights[h] = Format::weights(input, half + h);
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t) {
      const VF value = set1(x[t * width + k]);
      PUNA_UNROLL for (int h = 0; h < HALVES; ++h) sum[t][h] = fma(weights[h], value, sum[t][h]);
    }
  }
}

// Registers decide how many sums are held at a time: where they are few, more than two tokens take a half after the other.
template <class Format, int TOKENS, bool FETCH>
static inline void float_tile(const LinearArgs& a, int64_t panel, int64_t token) {
  constexpr int HALVES = PUNA_PATH == 512 || TOKENS <= 2 ? 2 : 1;
  const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
  const float* x = a.x + token * a.matrix->in_features;
  const int64_t first = a.first_group * GROUP;  // 0, but where the order of sums is broken on purpose
  VF sums[TOKENS][2];
  for (int half = 0; half < 2; half += HALVES) {
    VF sum[TOKENS][HALVES];
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t)
      PUNA_UNROLL for (int h = 0; h < HALVES; ++h) sum[t][h] = zero();
    float_inputs<Format, TOKENS, HALVES, FETCH>(a, w, x, first, a.matrix->in_features, half, sum);
    if (first) [[unlikely]] float_inputs<Format, TOKENS, HALVES, FETCH>(a, w, x, 0, first, half, sum);
    PUNA_UNROLL for (int t = 0; t < TOKENS; ++t)
      PUNA_UNROLL for (int h = 0; h < HALVES; ++h) sums[t][half + h] = sum[t][h];
  }
  for (int t = 0; t < TOKENS; ++t) store_panel(a, panel, token + t, sums[t][0], sums[t][1]);
}

// Of the rows that are left, as many as a tile takes: how they are cut changes no bit, and no row past the end is read.
template <class Format, bool FETCH>
static inline int64_t float_tile(const LinearArgs& a, int64_t panel, int64_t row, int64_t left) {
#if PUNA_PATH == 512
  if (left >= 12 && left != 16) return float_tile<Format, 12, FETCH>(a, panel, row), 12;
  if (left >= 8) return float_tile<Format, 8, FETCH>(a, panel, row), 8;
#endif
  if (left >= 4) return float_tile<Format, 4, FETCH>(a, panel, row), 4;
  if (left >= 2) return float_tile<Format, 2, FETCH>(a, panel, row), 2;
  return float_tile<Format, 1, FETCH>(a, panel, row), 1;
}

template <class Format>
static void float_panels(const LinearArgs& a, const LinearPart& part) {
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    int64_t row = part.row + float_tile<Format, true>(a, panel, part.row, part.row_end - part.row);
    while (row < part.row_end) row += float_tile<Format, false>(a, panel, row, part.row_end - row);
  }
}

}  // namespace puna::PUNA_NS
