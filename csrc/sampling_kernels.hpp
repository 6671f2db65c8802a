// The kernels of sampling that an instruction path provides (sampling.hpp), as the sampler calls them.
//
// A row of logits is cut into tiles of 256; the maximum of each tile is taken once, and whatever comes later (the
// greedy choice, a search for the best tokens, the draw) looks only into tiles that can matter. Values of a row may
// be -inf (tokens that are out) everywhere but in tile_maxima, which judges what the model gave.
#pragma once

#include <cstdint>

namespace puna {

constexpr int64_t TILE = 256;
constexpr int TAILS = 8;  // bounds that are tried at a time

static inline int64_t tiles_of(int64_t count) { return (count + TILE - 1) / TILE; }

// What a draw's noise depends on but the token: Philox 4x32-10 with counter (token / 4, position, 0, 0) and key seed.
struct NoiseKey {
  uint32_t position;
  uint32_t round[10][2];  // the key of each round
};

// A token whose noise is large enough to be looked at: its place (in a list, or its id) and its 32 bits of noise.
struct Contender {
  int32_t place;
  uint32_t bits;
};

struct SamplingKernels {
  // maxima[t] of x[256 t ..]; NaN where a value of the tile is not finite. x may be a slice that begins with a tile.
  void (*tile_maxima)(const float* x, int64_t count, float* maxima);

  // out = x where the token's bit is set (bit i % 32 of word i / 32), else -inf; and the maxima of out.
  void (*mask_row)(const float* x, const uint32_t* words, int64_t count, float* out, float* maxima);

  // Sum of 2^((x - best) * exponent), within 4e-6 of itself for any x. Tiles far below `best` add nothing.
  double (*mass)(const float* x, const float* maxima, int64_t count, float best, float exponent);

  // For each of TAILS bounds the part of that sum that values below it have, in every `step`-th tile: an estimate.
  void (*tails)(const float* x, int64_t count, int64_t step, float best, float exponent, const float* bounds, double* out);

  // How many values are at least `threshold`.
  int64_t (*count_from)(const float* x, const float* maxima, int64_t count, float threshold);

  // Those values and their tokens, in order; returns how many. The lists have room for 16 more.
  int64_t (*collect)(const float* x, const float* maxima, int64_t count, float threshold, int32_t* ids, float* values);

  // weights = exp(values - best), within 1e-6; returns their sum.
  double (*weigh)(const float* values, int64_t count, float best, float* weights);

  // Sum of the weights of list entries that rank before (value, id): larger, or equal with a lower id.
  double (*weight_before)(const int32_t* ids, const float* values, const float* weights, int64_t count, float value,
                          int32_t id);

  // List entries (at most 256) whose value + noise may reach `score`. `out` has room for all.
  int (*contend)(const NoiseKey& key, const int32_t* ids, const float* values, int64_t count, float score,
                 Contender* out);

  // Tokens first .. first + 255 whose noise is at most `limit` (the smaller the bits, the larger the noise), in any
  // order and whether the vocabulary has them or not. `out` has room for all.
  int (*contend_tile)(const NoiseKey& key, int32_t first, uint32_t limit, Contender* out);
};

}  // namespace puna
