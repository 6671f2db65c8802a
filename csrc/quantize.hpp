// Activations as integers, in groups of 32 along K, for the integer matmuls.
//
// A group is int8 with scale max|x| / 127. A few channels of a transformer's activations are far larger than the rest;
// a group that holds one would round its other 31 values coarsely, and such groups make most of the whole error. So a
// group whose largest value is more than WIDE_ABOVE times the row's root mean square is wide: what the first bytes left is a
// second group, 128 times finer. What is wide depends on the token's own row alone.
//
//   x ~ scale * q, scale = max|x| / 127; of wide groups + scale / 128 * fine, fine in -64 .. 64
#pragma once

#include "kernels.hpp"
#include "rowwise.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

constexpr float WIDE_ABOVE = 6.0f;
constexpr float SMALLEST_SCALE = 0x1p-126f;  // a normal number, whose inverse is finite; groups below it are zero

// A group of integers, and of sums of them, with its scale.
static inline void state_sums(RoundedGroup* to, float scale, ByteSums sums) {
  const int32_t sum = sums.first + sums.second;
  to->scale = scale;
  to->offset = scale * static_cast<float>(sum);
  to->first_offset = scale * static_cast<float>(sums.first);
  to->from_8 = DOT_ZERO - 8 * sum;
  to->from_16 = DOT_ZERO - 16 * sum;
  to->from_128 = DOT_ZERO - 128 * sum;
  to->first_from_32 = DOT_ZERO - 32 * sums.first;
  to->last_from_32 = DOT_ZERO - 32 * sums.second;
}

static void quantize(const float* x, int64_t width, const QuantizedRows& out, int64_t row) {
  const int64_t groups = (width + GROUP - 1) / GROUP;
  const float mean_square = sum_of_squares(x, width) / static_cast<float>(width);
  const TokenTile tile = tile_of(row, out.rows, MOST_TOKENS);
  RoundedGroup* to = out.groups + tile.first * groups + (row - tile.first);
  uint16_t* wide = out.wide + row * (groups + 1);
  uint16_t found = 0;
  for (int64_t g = 0; g < groups; ++g, to += tile.size) {
    const int64_t left = width - g * GROUP;
    const float* values = x + g * GROUP;
    float padded[GROUP] = {};
    if (left < GROUP) {
      std::memcpy(padded, values, sizeof(float) * static_cast<size_t>(left));
      values = padded;
    }
    VF low = load(values);
    VF high = load(values + LANES);
    if (!all_finite(low) || !all_finite(high)) [[unlikely]] {
      // What is not a number has no integer: the group's scale carries it on.
      *to = {};
      to->scale = to->offset = to->first_offset = __builtin_nanf("");
      continue;
    }
    const float peak = reduce_max(max(absolute(low), absolute(high)));
    float scale = peak / 127.0f;
    if (scale < SMALLEST_SCALE) scale = 0;
    const VF inverse = set1(scale > 0 ? 1.0f / scale : 0.0f);
    low = min(mul(low, inverse), set1(127.0f));
    high = min(mul(high, inverse), set1(127.0f));
    state_sums(to, scale, to_bytes(low, high, to->q));
    if (peak * peak > WIDE_ABOVE * WIDE_ABOVE * mean_square) {
      RoundedGroup* fine = out.fine + row * groups + g;
      low = mul(sub(low, round_even(low)), set1(128.0f));
      high = mul(sub(high, round_even(high)), set1(128.0f));
      state_sums(fine, scale / 128.0f, to_bytes(low, high, fine->q));
      wide[++found] = static_cast<uint16_t>(g);
    }
  }
  wide[0] = found;
}

}  // namespace puna::PUNA_NS
