#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "noise.hpp"

namespace puna {

namespace {

constexpr float GREEDY_BELOW = 1e-5f;

int32_t choose(const KernelTable& kernels, const SampleView& rows, int64_t s, const Row& raw, SampleScratch& scratch) {
  const Row row = scratch.edits.apply(kernels, rows, s, raw.x, raw.vocab, raw.maxima);
  const float best = largest(row);
  int32_t token = NOTHING_LEFT;
  if (std::isfinite(best) && rows.temperature[s] < GREEDY_BELOW)
    token = first_at(row, best);
  else if (std::isfinite(best))
    token = draw(kernels, row, best, {rows.temperature[s], rows.top_k[s], rows.top_p[s], rows.min_p[s]},
                 noise_key(rows.seed[s], rows.position[s]), scratch.candidates);
  scratch.edits.undo();
  return token;
}

// Log-probability and rank of a token, and the k best, from the raw logits.
void score(const KernelTable& kernels, const Row& raw, int32_t token, int64_t s, int64_t k, Candidates& c,
           const SampleOut& out) {
  const float best = largest(raw);
  const float normaliser = best + std::log(kernels.sum_exp(raw.x, raw.vocab, best));
  const float value = raw.x[token];
  const float above = std::nextafter(value, std::numeric_limits<float>::infinity());
  out.logprob[s] = value - normaliser;
  out.rank[s] = 1 + static_cast<int32_t>(kernels.sampling.count_from(raw.x, raw.maxima, raw.vocab, above));
  k = std::min(k, raw.vocab);
  if (k == 0) return;
  c.reserve(raw.vocab);
  collect_best(kernels, raw, k, std::numeric_limits<float>::lowest(), c);
  const auto end = c.ids.begin() + c.count;
  std::partial_sort(c.ids.begin(), c.ids.begin() + k, end, [&raw](int32_t a, int32_t b) {
    return raw.x[a] != raw.x[b] ? raw.x[a] > raw.x[b] : a < b;
  });
  for (int64_t i = 0; i < k; ++i) {
    const int32_t id = c.ids[static_cast<size_t>(i)];
    out.top_ids[s * out.top_width + i] = id;
    out.top_logprobs[s * out.top_width + i] = raw.x[id] - normaliser;
  }
}

}  // namespace

void sample_row(const KernelTable& kernels, const SampleView& rows, int64_t s, float* logits, int64_t vocab,
                const float* maxima, SampleScratch& scratch, const SampleOut& out) {
  if (!maxima) {
    scratch.maxima.resize(static_cast<size_t>(tiles_of(vocab)));
    kernels.sampling.tile_maxima(logits, vocab, scratch.maxima.data());
    maxima = scratch.maxima.data();
  }
  const Row raw{logits, vocab, maxima};
  if (std::isnan(largest(raw))) {
    out.tokens[s] = NO_TOKEN;
    return;
  }
  const int32_t token = rows.target[s] >= 0 ? rows.target[s] : choose(kernels, rows, s, raw, scratch);
  out.tokens[s] = token;
  if (token >= 0 && rows.num_logprobs[s] >= 0) score(kernels, raw, token, s, rows.num_logprobs[s], scratch.candidates, out);
}

}  // namespace puna
