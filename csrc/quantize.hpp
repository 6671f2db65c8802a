// Activations as integers, in groups of 32 along K, for the integer matmuls.
//
// A group is int8 with scale max|x| / 127. A few channels of a transformer's activations are far larger than the rest;
// a group that holds one would round its other 31 values coarsely, and such groups make most of the whole error. So a
// group whose largest value is more than WIDE_ABOVE times the row's root mean square is wide: each value gets a second,
// fine byte, 128 times finer than the first. What is wide depends on the token's own row alone.
//
//   narrow  x ~ scale * q               scale = max|x| / 127
//   wide    x ~ scale * (128 q + fine)  scale = max|x| / 127 / 128, fine in -64 .. 64
#pragma once

#include "kernels.hpp"
#include "rowwise.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

constexpr float WIDE_ABOVE = 4.0f;

// Rounds 32 values to the nearest integer, ties to even, and returns their sum. A value that is not a number has no
// integer: it becomes zero here, and the group's scale carries it on.
static inline int32_t round_group(const float* values, int8_t* out) {
  float rounded[GROUP];
  store(rounded, round_even(load(values)));
  store(rounded + LANES, round_even(load(values + LANES)));
  int32_t total = 0;
  for (int i = 0; i < GROUP; ++i) {
    const float value = rounded[i] >= -127.0f && rounded[i] <= 127.0f ? rounded[i] : 0.0f;
    out[i] = static_cast<int8_t>(value);
    total += out[i];
  }
  return total;
}

static void quantize(const float* x, int64_t width, const QuantizedRows& out, int64_t row) {
  const int64_t groups = (width + GROUP - 1) / GROUP;
  const float mean_square = sum_of_squares(x, width) / static_cast<float>(width);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t at = row * groups + g;
    float values[GROUP] = {};
    const int64_t left = width - g * GROUP;
    std::memcpy(values, x + g * GROUP, sizeof(float) * static_cast<size_t>(left < GROUP ? left : GROUP));
    VF low = load(values);
    VF high = load(values + LANES);
    const float peak = reduce_max(max(absolute(low), absolute(high)));
    const float scale = peak / 127.0f;
    const VF inverse = set1(scale > 0 ? 1.0f / scale : 0.0f);
    low = mul(low, inverse);
    high = mul(high, inverse);
    store(values, low);
    store(values + LANES, high);
    int8_t* q = out.q + at * GROUP;
    out.sum[at] = round_group(values, q);
    out.scale[at] = scale;
    out.wide[at] = peak * peak > WIDE_ABOVE * WIDE_ABOVE * mean_square;
    if (out.wide[at]) {
      for (int i = 0; i < GROUP; ++i) values[i] = (values[i] - static_cast<float>(q[i])) * 128.0f;
      out.sum[at] = 128 * out.sum[at] + round_group(values, out.fine + at * GROUP);
      out.scale[at] = scale / 128.0f;
    }
    for (int64_t i = 0; i < GROUP && i < left; ++i)
      if (!(x[g * GROUP + i] - x[g * GROUP + i] == 0.0f)) out.scale[at] = __builtin_nanf("");
  }
}

}  // namespace puna::PUNA_NS
