// Gate and up at once, on tiles: a panel of both is computed for a block of rows, and becomes a rounded group of the
// next linear's input while its sums lie in the first caches: no value of them is written as float32.
//
// Knows the layouts of weights by name only; how tokens pass a panel is in matmul_amx.hpp and matmul_amx_many.hpp.
#pragma once

#include "activations.hpp"
#include "matmul_amx.hpp"
#include "scratch.hpp"

namespace puna::path_amx {

struct alignas(64) GatedSums {
  float gate[MANY * PANEL];
  float up[MANY * PANEL];
};

// Few rows: sums of both go to scratch of the first cache.
static void few_gated(const GatedArgs& a, const LinearPart& part) {
  GatedSums& sums = thread_scratch<GatedSums>();
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
    multiply(gate, {panel, panel + 1, 0, a.gate.rows});
    multiply(up, {panel, panel + 1, 0, a.gate.rows});
    for (int64_t row = 0; row < a.gate.rows; ++row) {
      const float* g = sums.gate + row * PANEL;
      const float* u = sums.up + row * PANEL;
      keep_rounded(a.out, place_in_rows(a.out, groups, row, panel), factor(g, u, there), factor(g + 16, u + 16, there >> 16));
    }
  }
}

static void many_gated(const GatedArgs& a, const LinearPart& part) {
  ManyScratch& scratch = thread_scratch<ManyScratch>();
  const Tiles tiles(TileShapes(16, 16));
  for (int64_t panel = part.panel; panel < part.panel_end; ++panel) {
    with_format(*a.gate.matrix, [&](auto format) { activate_panel<decltype(format)>(a, panel, part, scratch); });
    with_format(*a.up.matrix, [&](auto format) { gate_panel<decltype(format)>(a, panel, part, scratch); });
  }
}

static void gated(const GatedArgs& a, const LinearPart& part) {
  if (a.gate.rows >= MANY) many_gated(a, part);
  else few_gated(a, part);
}

}  // namespace puna::path_amx
