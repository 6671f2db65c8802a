#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace puna {

namespace {

constexpr float GREEDY_BELOW = 1e-5f;
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

struct Lanes {
  uint32_t value[4];
};

// Philox 4x32-10 (Salmon et al., SC 2011) with counter (block, position, 0, 0) and key seed.
Lanes philox(uint64_t seed, uint32_t position, uint32_t block) {
  uint32_t c0 = block, c1 = position, c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53u} * c0;
    const uint64_t second = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(second);
    c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(first);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

double gumbel(uint32_t bits) {
  const double v = (static_cast<double>(bits) + 0.5) * 0x1p-32;
  return -std::log(-std::log1p(-v));
}

// No noise is larger: v >= 2^-33 gives at most 33 log 2.
constexpr double LARGEST_GUMBEL = 22.9;

// gumbel(bits) <= -log(v), and v >= 2^-(leading zeros + 1).
double gumbel_bound(uint32_t bits) {
  const int zeros = bits == 0 ? 32 : __builtin_clz(bits);
  return (zeros + 1) * 0.6931471805599454;
}

int64_t first_maximum(const float* x, int64_t n, float best) {
  for (int64_t i = 0; i < n; ++i)
    if (x[i] == best) return i;
  return 0;
}

bool all_numbers(const float* x, int64_t n) {
  float total = 0;
  for (int64_t i = 0; i < n; ++i) total += x[i] * 0.0f;  // NaN and infinity leave a NaN
  return total == 0.0f;
}

// Steps "allowed" to "penalties", on scratch.values.
void process(const SampleView& rows, int64_t s, const float* logits, int64_t vocab, SampleScratch& scratch) {
  float* x = scratch.values.data();
  if (rows.allowed_start[s] < rows.allowed_start[s + 1]) {
    std::fill(x, x + vocab, MINUS_INFINITY);
    for (int32_t i = rows.allowed_start[s]; i < rows.allowed_start[s + 1]; ++i)
      x[rows.allowed_ids[i]] = logits[rows.allowed_ids[i]];
  } else {
    std::memcpy(x, logits, sizeof(float) * static_cast<size_t>(vocab));
  }
  for (int32_t i = rows.banned_start[s]; i < rows.banned_start[s + 1]; ++i) x[rows.banned_ids[i]] = MINUS_INFINITY;
  for (int32_t i = rows.bias_start[s]; i < rows.bias_start[s + 1]; ++i) x[rows.bias_ids[i]] += rows.bias_values[i];
  const float repetition = rows.repetition[s], frequency = rows.frequency[s], presence = rows.presence[s];
  if (repetition == 1.0f && frequency == 0.0f && presence == 0.0f) return;
  const int32_t* tokens = rows.history + rows.history_row[s] * rows.history_width;
  int32_t* counts = scratch.counts.data();  // 1 + occurrences in the output, 0: not seen
  for (int32_t i = 0; i < rows.total_len[s]; ++i) {
    int32_t& count = counts[tokens[i]];
    if (count == 0) count = 1;
    if (i >= rows.prompt_len[s]) ++count;
  }
  for (int32_t i = 0; i < rows.total_len[s]; ++i) {
    const int32_t token = tokens[i];
    if (counts[token] == 0) continue;  // done already
    const int32_t occurrences = counts[token] - 1;
    counts[token] = 0;
    x[token] = x[token] > 0 ? x[token] / repetition : x[token] * repetition;
    x[token] -= frequency * static_cast<float>(occurrences);
    if (occurrences > 0) x[token] -= presence;
  }
}

void keep_top_k(float* x, int64_t vocab, int32_t k, SampleScratch& scratch) {
  if (k <= 0 || k >= vocab) return;
  scratch.copy.assign(x, x + vocab);
  auto kth = scratch.copy.begin() + (k - 1);
  std::nth_element(scratch.copy.begin(), kth, scratch.copy.end(), std::greater<float>());
  const float threshold = *kth;
  for (int64_t i = 0; i < vocab; ++i)
    if (x[i] < threshold) x[i] = MINUS_INFINITY;
}

// Keeps the likeliest tokens up to a mass of top_p (the one that reaches it included; ties by token id). Tokens are
// counted into buckets by their distance from the best one; only the bucket in which the mass is reached is sorted.
void keep_top_p(float* x, int64_t vocab, float top_p, float best, SampleScratch& scratch) {
  if (top_p >= 1.0f) return;
  constexpr int BUCKETS = 256;
  constexpr float WIDTH = 0.25f;
  const auto bucket_of = [best](float value) {
    const float distance = (best - value) / WIDTH;
    return distance < BUCKETS - 1 ? static_cast<int>(distance) : BUCKETS - 1;
  };
  double mass[BUCKETS] = {};
  for (int64_t i = 0; i < vocab; ++i)
    if (x[i] > MINUS_INFINITY) mass[bucket_of(x[i])] += std::exp(static_cast<double>(x[i] - best));
  double total = 0;
  for (const double m : mass) total += m;
  const double wanted = static_cast<double>(top_p) * total;
  double before = 0;
  int edge = 0;
  while (edge < BUCKETS - 1 && before + mass[edge] < wanted) before += mass[edge++];
  scratch.ids.clear();
  for (int64_t i = 0; i < vocab; ++i) {
    if (!(x[i] > MINUS_INFINITY)) continue;
    const int bucket = bucket_of(x[i]);
    if (bucket == edge) scratch.ids.push_back(static_cast<int32_t>(i));
    if (bucket > edge) x[i] = MINUS_INFINITY;
  }
  std::sort(scratch.ids.begin(), scratch.ids.end(), [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  bool first = edge == 0;
  for (const int32_t id : scratch.ids) {
    const double weight = std::exp(static_cast<double>(x[id] - best));
    if (before >= wanted && !first) x[id] = MINUS_INFINITY;
    before += weight;
    first = false;
  }
}

int32_t draw_noisy(const float* x, int64_t vocab, float best, uint64_t seed, uint32_t position) {
  int64_t winner = first_maximum(x, vocab, best);
  const auto noise_of = [&](int64_t i) {
    return philox(seed, position, static_cast<uint32_t>(i / 4)).value[i % 4];
  };
  double highest = static_cast<double>(x[winner]) + gumbel(noise_of(winner));
  for (int64_t block = 0; block < vocab; block += 4) {
    const int64_t end = std::min(block + 4, vocab);
    float peak = x[block];
    for (int64_t i = block + 1; i < end; ++i) peak = std::max(peak, x[i]);
    if (!(static_cast<double>(peak) + LARGEST_GUMBEL >= highest)) continue;
    const Lanes noise = philox(seed, position, static_cast<uint32_t>(block / 4));
    for (int64_t i = block; i < end; ++i) {
      const double value = static_cast<double>(x[i]);
      if (!(value + gumbel_bound(noise.value[i - block]) >= highest) || x[i] == MINUS_INFINITY) continue;
      const double score = value + gumbel(noise.value[i - block]);
      if (score > highest || (score == highest && i < winner)) highest = score, winner = i;
    }
  }
  return static_cast<int32_t>(winner);
}

int32_t draw(const KernelTable& kernels, const SampleView& rows, int64_t s, const float* logits, int64_t vocab,
             SampleScratch& scratch) {
  const bool plain = rows.allowed_start[s] == rows.allowed_start[s + 1] && rows.banned_start[s] == rows.banned_start[s + 1] &&
                     rows.bias_start[s] == rows.bias_start[s + 1] && rows.repetition[s] == 1.0f &&
                     rows.frequency[s] == 0.0f && rows.presence[s] == 0.0f;
  if (plain && rows.temperature[s] < GREEDY_BELOW)
    return static_cast<int32_t>(first_maximum(logits, vocab, kernels.maximum(logits, vocab)));
  process(rows, s, logits, vocab, scratch);
  float* x = scratch.values.data();
  float best = kernels.maximum(x, vocab);
  if (!(best > MINUS_INFINITY))  // nothing is allowed: the raw argmax
    return static_cast<int32_t>(first_maximum(logits, vocab, kernels.maximum(logits, vocab)));
  if (rows.temperature[s] < GREEDY_BELOW) return static_cast<int32_t>(first_maximum(x, vocab, best));
  for (int64_t i = 0; i < vocab; ++i) x[i] /= rows.temperature[s];
  best = kernels.maximum(x, vocab);
  if (rows.min_p[s] > 0) {
    const float threshold = best + static_cast<float>(std::log(static_cast<double>(rows.min_p[s])));
    for (int64_t i = 0; i < vocab; ++i)
      if (x[i] < threshold) x[i] = MINUS_INFINITY;
  }
  keep_top_k(x, vocab, rows.top_k[s], scratch);
  keep_top_p(x, vocab, rows.top_p[s], best, scratch);
  return draw_noisy(x, vocab, best, rows.seed[s], static_cast<uint32_t>(rows.position[s]));
}

void score(const KernelTable& kernels, const float* logits, int64_t vocab, int32_t token, int64_t s, int32_t k,
           SampleScratch& scratch, const SampleOut& out) {
  const float best = kernels.maximum(logits, vocab);
  const float normaliser = best + std::log(kernels.sum_exp(logits, vocab, best));
  int32_t rank = 1;
  for (int64_t i = 0; i < vocab; ++i) rank += logits[i] > logits[token];
  out.logprob[s] = logits[token] - normaliser;
  out.rank[s] = rank;
  k = static_cast<int32_t>(std::min<int64_t>(k, vocab));
  if (k == 0) return;
  scratch.ids.resize(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < vocab; ++i) scratch.ids[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  std::partial_sort(scratch.ids.begin(), scratch.ids.begin() + k, scratch.ids.end(), [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (int32_t i = 0; i < k; ++i) {
    const int32_t id = scratch.ids[static_cast<size_t>(i)];
    out.top_ids[s * out.top_width + i] = id;
    out.top_logprobs[s * out.top_width + i] = logits[id] - normaliser;
  }
}

}  // namespace

void sample_row(const KernelTable& kernels, const SampleView& rows, int64_t s, const float* logits, int64_t vocab,
                SampleScratch& scratch, const SampleOut& out) {
  if (!all_numbers(logits, vocab)) {
    out.tokens[s] = NO_TOKEN;
    return;
  }
  scratch.values.resize(static_cast<size_t>(vocab));
  if (scratch.counts.size() != static_cast<size_t>(vocab)) scratch.counts.assign(static_cast<size_t>(vocab), 0);
  const int32_t token = rows.target[s] >= 0 ? rows.target[s] : draw(kernels, rows, s, logits, vocab, scratch);
  out.tokens[s] = token;
  if (rows.num_logprobs[s] >= 0) score(kernels, logits, vocab, token, s, rows.num_logprobs[s], scratch, out);
}

}  // namespace puna
