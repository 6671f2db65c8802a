// The words of simd.hpp in plain C++, for any processor, and to be read: what each means, lane by lane. Only here a
// multiply-add rounds its product.
#pragma once

#include "simd.hpp"

namespace puna::PUNA_NS {

struct VF { float v[LANES]; };
struct VI { int32_t v[LANES]; };
struct VB { uint8_t v[4 * LANES]; };

#define PUNA_EACH(expression)                    \
  VF r;                                          \
  for (int i = 0; i < LANES; ++i) r.v[i] = (expression); \
  return r

static inline VF zero() { PUNA_EACH(0.0f); }
static inline VF set1(float x) { PUNA_EACH(x); }
static inline VF load(const float* p) { PUNA_EACH(p[i]); }
static inline void store(float* p, VF a) {
  for (int i = 0; i < LANES; ++i) p[i] = a.v[i];
}
static inline VF add(VF a, VF b) { PUNA_EACH(a.v[i] + b.v[i]); }
static inline VF sub(VF a, VF b) { PUNA_EACH(a.v[i] - b.v[i]); }
static inline VF mul(VF a, VF b) { PUNA_EACH(a.v[i] * b.v[i]); }
static inline VF div(VF a, VF b) { PUNA_EACH(a.v[i] / b.v[i]); }
static inline VF max(VF a, VF b) { PUNA_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline VF min(VF a, VF b) { PUNA_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline VF fma(VF a, VF b, VF c) { PUNA_EACH(a.v[i] * b.v[i] + c.v[i]); }
// Adding and taking away 1.5 * 2^23 rounds to even; values here are far smaller.
static inline VF round_even(VF a) {
  const float magic = 12582912.0f;
  VF r;
  for (int i = 0; i < LANES; ++i) {
    volatile float shifted = a.v[i] + magic;
    r.v[i] = shifted - magic;
  }
  return r;
}
static inline VF absolute(VF a) { PUNA_EACH(bits_to_float(float_to_bits(a.v[i]) & 0x7fffffffu)); }
static inline VF scale_by_power_of_two(VF a, VF n) {
  PUNA_EACH(n.v[i] != n.v[i] ? n.v[i] : a.v[i] * bits_to_float(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23));
}
static inline VF load_half(const uint16_t* p) { PUNA_EACH(half_to_float(p[i])); }
static inline void store_half(uint16_t* p, VF a) {
  for (int i = 0; i < LANES; ++i) p[i] = float_to_half(a.v[i]);
}
static inline VF load_bf16(const uint16_t* p) { PUNA_EACH(bf16_to_float(p[i])); }
static inline VF load_int8(const uint8_t* p) { PUNA_EACH(static_cast<float>(static_cast<int8_t>(p[i]))); }
static inline VF keep_lanes(VF a, int low, int high, float other) {
  PUNA_EACH(i >= low && i < high ? a.v[i] : other);
}
#undef PUNA_EACH

static inline bool all_finite(VF a) {
  bool finite = true;
  for (int i = 0; i < LANES; ++i) finite &= a.v[i] - a.v[i] == 0.0f;
  return finite;
}
static inline ByteSums to_bytes(VF a, VF b, int8_t* out) {
  a = round_even(a);
  b = round_even(b);
  ByteSums sums{};
  for (int i = 0; i < LANES; ++i) {
    out[i] = static_cast<int8_t>(a.v[i]);
    out[LANES + i] = static_cast<int8_t>(b.v[i]);
    sums.first += out[i];
    sums.second += out[LANES + i];
  }
  return sums;
}

static inline VI zero_int() { return VI{}; }
static inline VI set1_int(int32_t x) {
  VI r;
  for (int i = 0; i < LANES; ++i) r.v[i] = x;
  return r;
}
static inline VI add_int(VI a, VI b) {
  for (int i = 0; i < LANES; ++i) a.v[i] += b.v[i];
  return a;
}
static inline VI sub_int(VI a, VI b) {
  for (int i = 0; i < LANES; ++i) a.v[i] -= b.v[i];
  return a;
}
template <int LEFT>
static inline VI shift_int(VI a) {
  for (int i = 0; i < LANES; ++i) a.v[i] = LEFT >= 0 ? a.v[i] * (1 << (LEFT >= 0 ? LEFT : 0)) : a.v[i] >> (LEFT >= 0 ? 0 : -LEFT);
  return a;
}
static inline VI times_128(VI a) {
  for (int i = 0; i < LANES; ++i) a.v[i] *= 128;
  return a;
}
static inline VF to_float(VI a) {
  VF r;
  for (int i = 0; i < LANES; ++i) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
static inline VB load_bytes(const uint8_t* p) {
  VB r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline VB low_nibbles(VB a) {
  for (int i = 0; i < 4 * LANES; ++i) a.v[i] &= 15;
  return a;
}
static inline VB high_nibbles(VB a) {
  for (int i = 0; i < 4 * LANES; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] >> 4);
  return a;
}
template <int RIGHT>
static inline VB shifted(VB a) {
  for (int i = 0; i < 4 * LANES; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] >> RIGHT);
  return a;
}
static inline VB chosen(uint8_t mask, VB a, VB b) {
  for (int i = 0; i < 4 * LANES; ++i) a.v[i] = static_cast<uint8_t>((a.v[i] & mask) | (b.v[i] & ~mask));
  return a;
}
template <int RIGHT>
static inline VB fields(VB a, uint8_t mask) {
  for (int i = 0; i < 4 * LANES; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] >> RIGHT & mask);
  return a;
}
template <int LEFT>
static inline VB below(VB low, VB above) {
  for (int i = 0; i < 4 * LANES; ++i) low.v[i] = static_cast<uint8_t>((low.v[i] & 15) | (above.v[i] << LEFT & 0xf0));
  return low;
}
static inline VB look_up(VB index, const uint8_t* table) {
  for (int i = 0; i < 4 * LANES; ++i) index.v[i] = table[index.v[i]];
  return index;
}
static inline VI dot_bytes(VI sum, VB a, const int8_t* s) {
  for (int i = 0; i < LANES; ++i)
    sum.v[i] += a.v[4 * i] * s[0] + a.v[4 * i + 1] * s[1] + a.v[4 * i + 2] * s[2] + a.v[4 * i + 3] * s[3];
  return sum;
}
static inline VI dot_small(VI sum, VB a, const int8_t* four) { return dot_bytes(sum, a, four); }

// What a dot begins with, for a product with a factor of at most 22 bits (simd_avx512.hpp).
constexpr int32_t DOT_ZERO = 0;
struct DotFactor {
  VF scale;
};
static inline DotFactor dot_factor(VF scale) { return {scale}; }
static inline VF times_dot(VI dot, DotFactor f) { return mul(to_float(dot), f.scale); }

}  // namespace puna::PUNA_NS
