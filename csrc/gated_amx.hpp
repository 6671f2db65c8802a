// Gate and up at once, on tiles: a panel of both is computed for a block of rows, and becomes a rounded group of the
// next linear's input while its sums lie in the first caches: no value of them is written as float32.
//
// Knows the layouts of weights by name only; how tokens pass a panel is in matmul_amx.hpp and matmul_amx_many.hpp.
#pragma once

#include "activations.hpp"
#include "matmul_amx.hpp"

namespace puna::path_amx {

// Calls `use` with the format of a matrix.
template <class Use>
static inline void with_format(const Matrix& matrix, Use use) {
  if (matrix.layout == Layout::q4_rows) return use(Q4Rows{});
  if (matrix.layout == Layout::q8_rows) return use(Q8Rows{});
  return use(Bf16Rows{});
}

// Few rows: sums of both go to scratch of the first cache.
template <class GateFormat, class UpFormat>
static void few_gated(const GatedArgs& a, const LinearPart& part) {
  struct alignas(64) Sums {
    float gate[MANY * PANEL];
    float up[MANY * PANEL];
  };
  static thread_local Sums sums;
  const int64_t groups = a.gate.matrix->panel_count();
  const auto factor = [&](const float* gate, const float* up, uint32_t there) {
    const __m512 active = path_avx512::activate({_mm512_load_ps(gate)}, a.kind).v;
    return _mm512_maskz_mul_ps(static_cast<__mmask16>(there), active, _mm512_load_ps(up));
  };
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    const uint32_t there = lanes_of(a.gate.matrix->out_features - panel * GROUP);
    LinearArgs gate = a.gate, up = a.up;
    gate.out = sums.gate - panel * PANEL;
    up.out = sums.up - panel * PANEL;
    gate.out_stride = up.out_stride = PANEL;
    multiply<GateFormat>(gate, {panel, panel + 1, 0, a.gate.rows});
    multiply<UpFormat>(up, {panel, panel + 1, 0, a.gate.rows});
    for (int64_t row = 0; row < a.gate.rows; ++row) {
      const float* g = sums.gate + row * PANEL;
      const float* u = sums.up + row * PANEL;
      const __m512i rounded = bf16_of(factor(g, u, there), factor(g + 16, u + 16, there >> 16));
      _mm512_store_si512(group_of(a.out, groups, row, panel), rounded);
    }
  }
}

static void gated(const GatedArgs& a, const LinearPart& part) {
  with_format(*a.gate.matrix, [&](auto gate) {
    with_format(*a.up.matrix, [&](auto up) {
      if (a.gate.rows >= MANY) many_gated<decltype(gate), decltype(up)>(a, part);
      else few_gated<decltype(gate), decltype(up)>(a, part);
    });
  });
}

}  // namespace puna::path_amx
