// out = x @ matrix.T over packed panels (layouts: packing.hpp).
//
// One lane is one output row; its sum runs over the groups of K in order, for one token or for many, so a token's
// result never depends on who shares the batch. Bytes and operations a group of 32 rows x 32 inputs, q4: 640 bytes
// read, 16 byte-dot instructions and 6 multiply-adds a token; a group that the token holds wide (quantize.hpp) takes
// its fine bytes in a second pass over the same weights.
#pragma once

#include "kernels.hpp"
#include "packing.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

static inline int32_t four_bytes(const int8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

static inline void store_panel(const LinearArgs& a, int64_t panel, int64_t token, VF low, VF high) {
  const int64_t n = panel * PANEL;
  float* out = a.out + token * a.matrix->out_features + n;
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

template <int TOKENS>
static inline void float_tile(const LinearArgs& a, int64_t panel, int64_t token) {
  const int64_t width = a.matrix->in_features;
  const float* w = reinterpret_cast<const float*>(a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes);
  VF sum[TOKENS][2];
  for (int t = 0; t < TOKENS; ++t) sum[t][0] = sum[t][1] = zero();
  for (int64_t step = 0; step < width; ++step) {
    int64_t k = step + a.first_group * GROUP;
    if (k >= width) k -= width;
    const VF low = load(w + k * PANEL);
    const VF high = load(w + k * PANEL + LANES);
    for (int t = 0; t < TOKENS; ++t) {
      const VF x = set1(a.x[(token + t) * width + k]);
      sum[t][0] = fma(low, x, sum[t][0]);
      sum[t][1] = fma(high, x, sum[t][1]);
    }
  }
  for (int t = 0; t < TOKENS; ++t) store_panel(a, panel, token + t, sum[t][0], sum[t][1]);
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
  VI sum = zero_int();
  for (int c = 0; c < 8; ++c) sum = dot_bytes(sum, load_bytes(chunks + 64 * c), four_bytes(q + 4 * c));
  return sum;
}

template <int TOKENS>
static inline void q4_tile(const LinearArgs& a, int64_t panel, int64_t token) {
  const int64_t groups = a.matrix->groups();
  const QuantizedRows& x = a.quantized;
  const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
  VF sum[TOKENS][2];
  for (int t = 0; t < TOKENS; ++t) sum[t][0] = sum[t][1] = zero();
  for (int64_t step = 0; step < groups; ++step) {
    int64_t g = step + a.first_group;
    if (g >= groups) g -= groups;
    const uint8_t* group = w + static_cast<size_t>(g) * Q4_GROUP_BYTES;
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(group);
    for (int half = 0; half < 2; ++half) {
      const uint8_t* chunks = group + 4 * PANEL + 256 * half;
      VI low[TOKENS];
      VI high[TOKENS];
      for (int t = 0; t < TOKENS; ++t) low[t] = high[t] = zero_int();
      for (int c = 0; c < 4; ++c) {
        const VB bytes = load_bytes(chunks + 64 * c);
        const VB first = low_nibbles(bytes);
        const VB second = high_nibbles(bytes);
        for (int t = 0; t < TOKENS; ++t) {
          const int8_t* q = x.q + ((token + t) * groups + g) * GROUP + 4 * c;
          low[t] = dot_nibbles(low[t], first, four_bytes(q));
          high[t] = dot_nibbles(high[t], second, four_bytes(q + 16));
        }
      }
      const VF scale = load_half(halves + LANES * half);
      const VF minimum = load_half(halves + PANEL + LANES * half);
      for (int t = 0; t < TOKENS; ++t) {
        const int64_t at = (token + t) * groups + g;
        VI dot = add_int(low[t], high[t]);
        if (x.wide[at]) dot = add_int(times_128(dot), q4_dot(chunks, x.fine + at * GROUP));
        const float s = x.scale[at];
        sum[t][half] = fma(to_float(dot), mul(scale, set1(s)), sum[t][half]);
        sum[t][half] = fma(minimum, set1(s * static_cast<float>(x.sum[at])), sum[t][half]);
      }
    }
  }
  for (int t = 0; t < TOKENS; ++t) store_panel(a, panel, token + t, sum[t][0], sum[t][1]);
}

template <int TOKENS>
static inline void q8_tile(const LinearArgs& a, int64_t panel, int64_t token) {
  const int64_t groups = a.matrix->groups();
  const QuantizedRows& x = a.quantized;
  const uint8_t* w = a.matrix->panels + static_cast<size_t>(panel) * a.matrix->panel_bytes;
  VF sum[TOKENS][2];
  for (int t = 0; t < TOKENS; ++t) sum[t][0] = sum[t][1] = zero();
  for (int64_t step = 0; step < groups; ++step) {
    int64_t g = step + a.first_group;
    if (g >= groups) g -= groups;
    const uint8_t* group = w + static_cast<size_t>(g) * Q8_GROUP_BYTES;
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(group);
    for (int half = 0; half < 2; ++half) {
      const uint8_t* chunks = group + 2 * PANEL + 512 * half;
      VI dots[TOKENS];
      for (int t = 0; t < TOKENS; ++t) dots[t] = zero_int();
      for (int c = 0; c < 8; ++c) {
        const VB bytes = load_bytes(chunks + 64 * c);
        for (int t = 0; t < TOKENS; ++t)
          dots[t] = dot_bytes(dots[t], bytes, four_bytes(x.q + ((token + t) * groups + g) * GROUP + 4 * c));
      }
      const VF scale = load_half(halves + LANES * half);
      for (int t = 0; t < TOKENS; ++t) {
        const int64_t at = (token + t) * groups + g;
        VI dot = dots[t];
        if (x.wide[at]) dot = add_int(times_128(dot), q8_dot(chunks, x.fine + at * GROUP));
        dot = add_int(dot, set1_int(-128 * x.sum[at]));  // weights are stored as q + 128
        sum[t][half] = fma(to_float(dot), mul(scale, set1(x.scale[at])), sum[t][half]);
      }
    }
  }
  for (int t = 0; t < TOKENS; ++t) store_panel(a, panel, token + t, sum[t][0], sum[t][1]);
}

template <int TOKENS>
static inline void tile(const LinearArgs& a, int64_t panel, int64_t token) {
  switch (a.matrix->layout) {
    case Layout::float32: return float_tile<TOKENS>(a, panel, token);
    case Layout::q4: return q4_tile<TOKENS>(a, panel, token);
    case Layout::q8: return q8_tile<TOKENS>(a, panel, token);
  }
}

static void linear(const LinearArgs& a, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; ++panel) {
    int64_t token = 0;
    for (; token + 4 <= a.rows; token += 4) tile<4>(a, panel, token);
    for (; token + 2 <= a.rows; token += 2) tile<2>(a, panel, token);
    for (; token < a.rows; ++token) tile<1>(a, panel, token);
  }
}

}  // namespace puna::PUNA_NS
