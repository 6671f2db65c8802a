// What all matmuls over panels share: where a panel's sums of one token go, and how what follows is fetched in time.
// Knows nothing of layouts.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

// The arrays of a tile live in registers only when every loop over them is unrolled.
#if defined(__clang__)
#define PUNA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PUNA_UNROLL _Pragma("GCC unroll 16")
#endif

constexpr size_t PREFETCH_BYTES = 8192;  // ahead of where a panel is read first

static inline void prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

static inline void store_panel(const LinearArgs& a, int64_t panel, int64_t token, VF low, VF high) {
  const int64_t n = panel * PANEL;
  float* out = a.out + token * a.out_stride + n;
  const int64_t left = a.matrix->out_features - n;
  if (left >= PANEL) {
    if (a.bias) low = add(low, load(a.bias + n)), high = add(high, load(a.bias + n + LANES));
    if (a.accumulate) low = add(load(out), low), high = add(load(out + LANES), high);
    store(out, low);
    store(out + LANES, high);
    return;
  }
  float values[PANEL];
  store(values, low);
  store(values + LANES, high);
  for (int64_t i = 0; i < left; ++i) {
    const float value = a.bias ? values[i] + a.bias[n + i] : values[i];
    out[i] = a.accumulate ? out[i] + value : value;
  }
}

}  // namespace puna::PUNA_NS
