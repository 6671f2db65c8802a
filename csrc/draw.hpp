// Draws one token from an edited row: temperature, min-p, top-k, top-p and the noise.
//
// The vocabulary is never sorted or copied. min-p and top-k are thresholds, found from the tiles' maxima. For top-p the
// winner is drawn among more tokens than are kept, and then asked whether it is one of the kept: whether the tokens
// that rank before it weigh less than top_p. If not, only those remain and the draw is taken again. As all noise is
// keyed by the token, that is the same token as a draw among the kept alone.
#pragma once

#include <vector>

#include "row_edits.hpp"

namespace puna {

struct Filters {
  float temperature;  // above zero
  int32_t top_k;      // 0: off
  float top_p;        // 1 or more: off
  float min_p;        // 0: off
};

// One thread's working memory: the tokens in question, in the order of their ids.
struct Candidates {
  std::vector<int32_t> ids;
  std::vector<float> values;
  std::vector<float> weights;
  std::vector<float> order;
  std::vector<Contender> contenders;
  int64_t count = 0;

  void reserve(int64_t vocab);
};

// The largest value of all tiles, -inf where nothing is left; NaN where a tile has one.
float largest(const Row& row);

// The lowest token that has it.
int32_t first_at(const Row& row, float value);

// Fills `candidates` with at least the k best of a row and all that tie with the last one (all where there are fewer).
void collect_best(const KernelTable& kernels, const Row& row, int64_t k, float at_least, Candidates& candidates);

int32_t draw(const KernelTable& kernels, const Row& row, float best, Filters filters, const NoiseKey& key,
             Candidates& candidates);

}  // namespace puna
