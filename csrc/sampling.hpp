// The vector part of sampling: each function is described where the sampler calls it, in sampling_kernels.hpp.
//
// Nothing here decides: sums and bounds are approximate within stated limits, and the sampler settles what is close in
// exact arithmetic. So a token is the same on every path although the portable one rounds its multiply-adds twice.
// Cost at AVX-512, a run of 16 logits: maxima 64 bytes, 2 operations; mass 64 bytes, 13; a token's noise 3.5.
#pragma once

#include "sampling_kernels.hpp"
#include "simd_select.hpp"

namespace puna::PUNA_NS {

// 2^y within 1.5e-7 for -126 <= y <= 0; below that about 1e-38.
static inline VF power_of_two(VF y) {
  y = max(y, set1(-126.0f));
  const Split s = split(y);
  VF p = set1(1.8775766e-3f);
  p = fma(p, s.fraction, set1(8.9893406e-3f));
  p = fma(p, s.fraction, set1(5.5826318e-2f));
  p = fma(p, s.fraction, set1(2.4015361e-1f));
  p = fma(p, s.fraction, set1(6.9315308e-1f));
  p = fma(p, s.fraction, set1(0.99999994f));
  return scale_by_power_of_two(p, s.whole);
}

// Calls body(i, values) for each run of sixteen of `count` values; the last one is filled up with `rest`.
template <class Body>
static inline void each_run(const float* x, int64_t count, float rest, Body body) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + LANES <= count; i += LANES) body(i, load(x + i));
  if (i < count) body(i, load_some(x + i, count - i, rest));
}

static inline int64_t tile_size(int64_t tile, int64_t count) {
  return (tile + 1) * TILE <= count ? TILE : count - tile * TILE;
}

static inline uint32_t first_lanes(int64_t count) { return count >= LANES ? 0xffffu : (1u << count) - 1; }

static void tile_maxima(const float* x, int64_t count, float* maxima) {
  for (int64_t t = 0; t * TILE < count; ++t) {
    VF best = set1(-__builtin_inff());
    VF wrong = zero();  // x * 0 is a NaN for NaN and infinities, and stays one
    each_run(x + t * TILE, tile_size(t, count), x[t * TILE], [&](int64_t, VF v) {
      best = max(best, v);
      wrong = fma(v, zero(), wrong);
    });
    const bool finite = bits_of(equal(wrong, wrong)) == 0xffffu;
    maxima[t] = finite ? fold_max(best) : __builtin_nanf("");
  }
}

static void mask_row(const float* x, const uint32_t* words, int64_t count, float* out, float* maxima) {
  const VF never = set1(-__builtin_inff());
  for (int64_t t = 0; t * TILE < count; ++t) {
    const int64_t first = t * TILE, size = tile_size(t, count);
    VF best = never;
    each_run(x + first, size, -__builtin_inff(), [&](int64_t i, VF v) {
      const int64_t token = first + i;
      v = where(mask_of(words[token / 32] >> (token % 32) & 0xffffu), v, never);
      best = max(best, v);
      store_some(out + token, v, size - i);
    });
    maxima[t] = fold_max(best);
  }
}

static double mass(const float* x, const float* maxima, int64_t count, float best, float exponent) {
  constexpr float NOTHING = -60.0f;  // 2^-60 of the best one
  constexpr int TILES_A_SUM = 16;    // float lanes are folded into a double before their rounding shows
  double total = 0;
  VF sum = zero();
  for (int64_t t = 0; t * TILE < count; ++t) {
    if ((maxima[t] - best) * exponent >= NOTHING) {
      VF tile = zero();
      each_run(x + t * TILE, tile_size(t, count), -__builtin_inff(), [&](int64_t, VF v) {
        tile = add(tile, power_of_two(mul(sub(v, set1(best)), set1(exponent))));
      });
      sum = add(sum, tile);
    }
    if (t % TILES_A_SUM == TILES_A_SUM - 1) {
      total += static_cast<double>(reduce_add(sum));
      sum = zero();
    }
  }
  return total + static_cast<double>(reduce_add(sum));
}

static void tails(const float* x, int64_t count, int64_t step, float best, float exponent, const float* bounds, double* out) {
  VF sums[TAILS];
  for (int b = 0; b < TAILS; ++b) sums[b] = zero();
  for (int64_t t = 0; t * TILE < count; t += step) {
    each_run(x + t * TILE, tile_size(t, count), -__builtin_inff(), [&](int64_t, VF v) {
      const VF weight = power_of_two(mul(sub(v, set1(best)), set1(exponent)));
      for (int b = 0; b < TAILS; ++b) sums[b] = add(sums[b], where(at_least(v, set1(bounds[b])), zero(), weight));
    });
  }
  for (int b = 0; b < TAILS; ++b) out[b] = static_cast<double>(reduce_add(sums[b]));
}

static int64_t count_from(const float* x, const float* maxima, int64_t count, float threshold) {
  int64_t found = 0;
  for (int64_t t = 0; t * TILE < count; ++t) {
    if (!(maxima[t] >= threshold)) continue;
    const int64_t size = tile_size(t, count);
    each_run(x + t * TILE, size, threshold, [&](int64_t i, VF v) {
      found += __builtin_popcount(bits_of(at_least(v, set1(threshold))) & first_lanes(size - i));
    });
  }
  return found;
}

static int64_t collect(const float* x, const float* maxima, int64_t count, float threshold, int32_t* ids,
                       float* values) {
  int64_t found = 0;
  for (int64_t t = 0; t * TILE < count; ++t) {
    if (!(maxima[t] >= threshold)) continue;
    const int64_t size = tile_size(t, count);
    each_run(x + t * TILE, size, threshold, [&](int64_t i, VF v) {
      const uint32_t chosen = bits_of(at_least(v, set1(threshold))) & first_lanes(size - i);
      found += put(chosen, static_cast<int32_t>(t * TILE + i), v, ids + found, values + found);
    });
  }
  return found;
}

static double weigh(const float* values, int64_t count, float best, float* weights) {
  double total = 0;
  for (int64_t t = 0; t * TILE < count; ++t) {
    VF sum = zero();
    each_run(values + t * TILE, tile_size(t, count), -__builtin_inff(), [&](int64_t i, VF v) {
      const VF weight = power_of_two(mul(sub(v, set1(best)), set1(1.44269504f)));
      store(weights + t * TILE + i, weight);  // the lists have spare room
      sum = add(sum, weight);
    });
    total += static_cast<double>(reduce_add(sum));
  }
  return total;
}

static double weight_before(const int32_t* ids, const float* values, const float* weights, int64_t count, float value,
                            int32_t id) {
  double total = 0;
  for (int64_t t = 0; t * TILE < count; ++t) {
    const int64_t size = tile_size(t, count);
    VF sum = zero();
    each_run(values + t * TILE, size, 0.0f, [&](int64_t i, VF v) {
      const VM lower_id = below_int(load_int(ids + t * TILE + i), set1_int(id));
      const VM before = either(above(v, set1(value)), both(equal(v, set1(value)), lower_id));
      const VM real = mask_of(first_lanes(size - i));
      sum = add(sum, where(both(before, real), load(weights + t * TILE + i), zero()));
    });
    total += static_cast<double>(reduce_add(sum));
  }
  return total;
}

// Philox 4x32-10 (Salmon et al., SC 2011) for GROUPS times eight counters, side by side because each waits for its own
// products. Two rounds are cheap: all counters share three of their four words. A VL holds a word in its low half, and
// anything in its high half.
template <int GROUPS>
static inline void philox(const NoiseKey& key, const VL blocks[GROUPS], VL words[GROUPS][4]) {
  constexpr uint32_t M0 = 0xD2511F53u, M1 = 0xCD9E8D57u;
  const VL m0 = set1_long(M0), m1 = set1_long(M1), none = set1_long(0);
  const uint64_t shared = uint64_t{M0} * (key.position ^ key.round[0][0]);
  const VL shared_high = set1_long(static_cast<uint32_t>(shared >> 32)), shared_low = set1_long(static_cast<uint32_t>(shared));
  for (int g = 0; g < GROUPS; ++g) {
    const VL first = product(blocks[g], m0);
    const VL second = product(exclusive(high(first), set1_long(key.round[0][1]), none), m1);
    words[g][0] = exclusive(high(second), set1_long(key.round[1][0]), none);
    words[g][1] = second;
    words[g][2] = exclusive(shared_high, first, set1_long(key.round[1][1]));
    words[g][3] = shared_low;
  }
#pragma GCC unroll 8
  for (int r = 2; r < 10; ++r) {
    const VL k0 = set1_long(key.round[r][0]), k1 = set1_long(key.round[r][1]);
    for (int g = 0; g < GROUPS; ++g) {
      VL* c = words[g];
      const VL first = product(c[0], m0), second = product(c[2], m1);
      c[0] = exclusive(high(second), c[1], k0);
      c[1] = second;
      c[2] = exclusive(high(first), c[3], k1);
      c[3] = first;
    }
  }
}

static int contend(const NoiseKey& key, const int32_t* ids, const float* values, int64_t count, float score,
                   Contender* out) {
  int found = 0;
  for (int64_t i = 0; i < count; i += LANES) {  // what stands behind the end is in the lists' spare room
    const VL tokens[2] = {load_longs(ids + i), load_longs(ids + i + 8)};
    const VL blocks[2] = {quarter(tokens[0]), quarter(tokens[1])};
    VL words[2][4];
    philox<2>(key, blocks, words);
    uint32_t bits[LANES];
    store_low(bits, pick(tokens[0], words[0]));
    store_low(bits + 8, pick(tokens[1], words[1]));
    // Noise is at most -log v, v = (bits + 0.5) / 2^32. Read as an integer, a float is nearly its logarithm, and never
    // above it: log2(2^e (1 + m)) >= e + m. Halving `bits` spares a conversion without sign.
    int32_t whole[LANES];
    std::memcpy(whole, bits, sizeof whole);
    const VF half = max(to_float(shift_right_1(load_int(whole))), set1(0.25f));
    const VF log2_v = fma(to_float(as_int(half)), set1(0x1p-23f), set1(-127.0f - 31.0f));
    const VF bound = fma(log2_v, set1(-0.69314718f), load(values + i));
    const uint32_t real = first_lanes(count - i);
    for (uint32_t m = bits_of(at_least(bound, set1(score))) & real; m != 0; m &= m - 1) {
      const int lane = __builtin_ctz(m);
      out[found++] = {static_cast<int32_t>(i) + lane, bits[lane]};
    }
  }
  return found;
}

static int contend_tile(const NoiseKey& key, int32_t first, uint32_t limit, Contender* out) {
  constexpr int GROUPS = 4;
  int found = 0;
  for (int32_t id = first; id < first + static_cast<int32_t>(TILE); id += 32 * GROUPS) {
    const uint32_t block = static_cast<uint32_t>(id) / 4;
    VL blocks[GROUPS], words[GROUPS][4];
    for (int g = 0; g < GROUPS; ++g) blocks[g] = count_up(block + 8 * static_cast<uint32_t>(g));
    philox<GROUPS>(key, blocks, words);
    for (int g = 0; g < GROUPS; ++g)
      for (int w = 0; w < 4; ++w) {
        uint32_t chosen = at_most(words[g][w], limit);
        if (chosen == 0) continue;
        uint32_t bits[8];
        store_low(bits, words[g][w]);
        for (; chosen != 0; chosen &= chosen - 1) {
          const int lane = __builtin_ctz(chosen);
          out[found++] = {id + 32 * g + 4 * lane + w, bits[lane]};
        }
      }
  }
  return found;
}

}  // namespace puna::PUNA_NS
