// The activations between two linears, sixteen values at a time. Knows nothing of where values come from, so that an operator
// of rows (rowwise.hpp) and the epilogue of a linear (gated_amx.hpp) give the same bits.
#pragma once

#include "elementary.hpp"
#include "kernels.hpp"

namespace puna::PUNA_NS {

static inline VF sigmoid(VF x) { return div(set1(1.0f), add(set1(1.0f), exponential(sub(zero(), x)))); }

static inline VF activate(VF x, int kind) {
  switch (kind) {
    case SILU: return mul(x, sigmoid(x));
    case RELU: return max(x, zero());
    case RELU2: { const VF r = max(x, zero()); return mul(r, r); }
    case GELU_TANH: {
      // 0.5 x (1 + tanh(u)) = x sigmoid(2u)
      const VF cube = mul(mul(x, x), x);
      const VF u = mul(set1(0.7978845608f), fma(set1(0.044715f), cube, x));
      return mul(x, sigmoid(add(u, u)));
    }
    default: {
      float lanes[LANES];
      store(lanes, x);
      for (float& v : lanes) v = 0.5f * v * (1.0f + __builtin_erff(v * 0.70710678f));
      return load(lanes);
    }
  }
}

}  // namespace puna::PUNA_NS
