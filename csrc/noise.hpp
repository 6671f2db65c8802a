// The noise of one token in exact arithmetic: the maximum of value + noise over all tokens is a draw from their softmax.
// The vector twins in sampling.hpp only say which tokens are worth asking about.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "sampling_kernels.hpp"

namespace puna {

inline NoiseKey noise_key(uint64_t seed, int32_t position) {
  NoiseKey key{static_cast<uint32_t>(position), {}};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (auto& round : key.round) {
    round[0] = k0;
    round[1] = k1;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return key;
}

// Word token % 4 of Philox 4x32-10 (Salmon et al., SC 2011) with counter (token / 4, position, 0, 0).
inline uint32_t noise_bits(const NoiseKey& key, int32_t token) {
  uint32_t c[4] = {static_cast<uint32_t>(token) / 4, key.position, 0, 0};
  for (const auto& round : key.round) {
    const uint64_t first = uint64_t{0xD2511F53u} * c[0];
    const uint64_t second = uint64_t{0xCD9E8D57u} * c[2];
    c[0] = static_cast<uint32_t>(second >> 32) ^ c[1] ^ round[0];
    c[1] = static_cast<uint32_t>(second);
    c[2] = static_cast<uint32_t>(first >> 32) ^ c[3] ^ round[1];
    c[3] = static_cast<uint32_t>(first);
  }
  return c[token % 4];
}

inline double gumbel(uint32_t bits) {
  const double v = (static_cast<double>(bits) + 0.5) * 0x1p-32;
  return -std::log(-std::log1p(-v));
}

// No noise is larger: v >= 2^-33 gives at most 33 log 2.
constexpr double LARGEST_GUMBEL = 22.9;

// gumbel(bits) <= -log(v), and v >= 2^-(leading zeros + 1).
inline double gumbel_bound(uint32_t bits) { return (std::countl_zero(bits) + 1) * 0.6931471805599454; }

// The bits above which noise cannot lift `value` to `score`: gumbel(bits) <= -log(v), so v <= exp(value - score).
inline uint32_t largest_bits(float value, double score) {
  const float room = static_cast<float>(static_cast<double>(value) - score);
  if (room >= 0) return 0xffffffffu;
  const double limit = static_cast<double>(std::exp(room)) * (0x1p32 * (1 + 1e-5)) + 1;
  return limit < 4294967295.0 ? static_cast<uint32_t>(limit) : 0xffffffffu;
}

}  // namespace puna
