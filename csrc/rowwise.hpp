// Operators on one row: norms, activations, additions, reductions. Sums run in sixteen lanes and are folded in one
// fixed tree, whatever the batch.
#pragma once

#include "activations.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

// Calls whole(i) for each run of sixteen values and one(i) for each value of the tail.
template <class Whole, class One>
static inline void for_lanes(int64_t width, Whole whole, One one) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) whole(i);
  for (; i < width; ++i) one(i);
}

static float sum_of_squares(const float* x, int64_t width) {
  VF sum = zero();
  float tail = 0;
  for_lanes(
      width, [&](int64_t i) { const VF v = load(x + i); sum = fma(v, v, sum); },
      [&](int64_t i) { tail += x[i] * x[i]; });
  return reduce_add(sum) + tail;
}

static void rms_norm(const float* x, const float* weight, float* out, int64_t width, float eps) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  for_lanes(
      width, [&](int64_t i) { store(out + i, mul(mul(load(x + i), set1(inverse)), load(weight + i))); },
      [&](int64_t i) { out[i] = x[i] * inverse * weight[i]; });
}

static void layer_norm(const float* x, const float* weight, const float* bias, float* out, int64_t width, float eps) {
  VF sum = zero();
  float tail = 0;
  for_lanes(width, [&](int64_t i) { sum = add(sum, load(x + i)); }, [&](int64_t i) { tail += x[i]; });
  const float mean = (reduce_add(sum) + tail) / static_cast<float>(width);
  for_lanes(
      width, [&](int64_t i) { store(out + i, sub(load(x + i), set1(mean))); }, [&](int64_t i) { out[i] = x[i] - mean; });
  const float variance = sum_of_squares(out, width) / static_cast<float>(width);
  const float inverse = 1.0f / __builtin_sqrtf(variance + eps);
  for (int64_t i = 0; i < width; ++i) {
    const float value = out[i] * inverse * weight[i];
    out[i] = bias ? value + bias[i] : value;
  }
}

static void gate(const float* g, const float* up, float* out, int64_t width, int kind) {
  for (int64_t i = 0; i < width; i += LANES) {
    const int64_t left = width - i;
    if (left >= LANES) {
      const VF value = activate(load(g + i), kind);
      store(out + i, up ? mul(value, load(up + i)) : value);
      continue;
    }
    float lanes[LANES] = {};
    std::memcpy(lanes, g + i, sizeof(float) * static_cast<size_t>(left));
    store(lanes, activate(load(lanes), kind));
    for (int64_t j = 0; j < left; ++j) out[i + j] = up ? lanes[j] * up[i + j] : lanes[j];
  }
}

static void add_rows(const float* x, float* out, int64_t width) {
  for_lanes(
      width, [&](int64_t i) { store(out + i, add(load(out + i), load(x + i))); }, [&](int64_t i) { out[i] += x[i]; });
}

static void rope(float* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim, int64_t pairs,
                 bool interleaved) {
  for (int64_t h = 0; h < heads; ++h, x += head_dim) {
    int64_t i = 0;
    for (; !interleaved && i + LANES <= pairs; i += LANES) {
      const VF a = load(x + i), b = load(x + i + pairs), c = load(cos + i), s = load(sin + i);
      store(x + i, sub(mul(a, c), mul(b, s)));
      store(x + i + pairs, add(mul(a, s), mul(b, c)));
    }
    for (; i < pairs; ++i) {
      float& a = x[interleaved ? 2 * i : i];
      float& b = x[interleaved ? 2 * i + 1 : i + pairs];
      const float turned = a * cos[i] - b * sin[i];
      b = a * sin[i] + b * cos[i];
      a = turned;
    }
  }
}

static float maximum(const float* x, int64_t width) {
  VF best = set1(-__builtin_inff());
  float tail = -__builtin_inff();
  for_lanes(width, [&](int64_t i) { best = max(best, load(x + i)); }, [&](int64_t i) { tail = x[i] > tail ? x[i] : tail; });
  const float folded = reduce_max(best);
  return folded > tail ? folded : tail;
}

static float sum_exp(const float* x, int64_t width, float shift) {
  VF sum = zero();
  float tail[LANES];
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sum = add(sum, exponential(sub(load(x + i), set1(shift))));
  if (i < width) {
    for (int64_t j = 0; j < LANES; ++j) tail[j] = i + j < width ? x[i + j] - shift : -100.0f;
    sum = add(sum, keep_lanes(exponential(load(tail)), 0, static_cast<int>(width - i), 0.0f));
  }
  return reduce_add(sum);
}

}  // namespace puna::PUNA_NS
