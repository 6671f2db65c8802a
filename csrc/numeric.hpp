// Scalar conversions between the number formats of weight files and caches. No instruction set is assumed here; these
// run when a model is loaded and where a single value is touched.
#pragma once

#include <cstdint>
#include <cstring>

namespace puna {

static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

// Nearest, ties to even; a NaN stays a NaN.
static inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Without a branch, so that loops over it become vector code. A subnormal half is a fraction of its least normal one.
static inline float half_to_float(uint16_t h) {
  constexpr uint32_t ONE = 1u << 23;  // one step of the exponent
  const int32_t magnitude = (h & 0x7fff) << 13;
  const uint32_t moved = static_cast<uint32_t>(magnitude) + 112u * ONE;
  const uint32_t tiny = float_to_bits(bits_to_float(moved + ONE) - bits_to_float(113u * ONE));
  const uint32_t above = magnitude >= 0x0f800000 ? 112u * ONE : 0u;  // infinities and NaNs
  const uint32_t bits = magnitude < 0x00800000 ? tiny : moved + above;
  return bits_to_float(bits | static_cast<uint32_t>(h & 0x8000) << 16);
}

// Nearest, ties to even; what is too large becomes the largest finite half, a NaN stays a NaN.
static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7bffu);
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

static inline uint16_t read_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | (p[1] << 8)); }

}  // namespace puna
