#include "draw.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "noise.hpp"

namespace puna {

namespace {

constexpr float LOWEST = std::numeric_limits<float>::lowest();
constexpr int64_t SPARE = 16;  // room behind the lists, so that vectors may be written whole
constexpr double LOG2_E = 1.4426950408889634;
constexpr int64_t SAMPLED_TILES = 24;  // that the spread of a row is told from, at least

// The row divided by the temperature, without dividing all of it.
struct Scaled {
  const Row& row;
  float temperature;
  float best;  // of the divided row

  float at(int64_t token) const { return row.x[token] / temperature; }
  // A bound for the undivided row: whatever reaches `value` after division reaches it. Division rounds.
  float undivided(float value) const {
    const double exact = static_cast<double>(value) * static_cast<double>(temperature);
    const double slack = std::fabs(exact) * 1e-6 + 1e-30 * (1 + static_cast<double>(temperature));
    return std::max(LOWEST, static_cast<float>(exact - slack));
  }
  float exponent() const { return static_cast<float>(LOG2_E / static_cast<double>(temperature)); }
};

// A winner in the making.
struct Winner {
  int32_t token;
  float value;
  double score;

  void meet(int32_t other, float its_value, uint32_t bits) {
    const double its_score = static_cast<double>(its_value) + gumbel(bits);
    if (its_score > score || (its_score == score && other < token)) *this = {other, its_value, its_score};
  }
};

Winner start(const NoiseKey& key, int32_t token, float value) {
  return {token, value, static_cast<double>(value) + gumbel(noise_bits(key, token))};
}

void keep_from(float threshold, Candidates& c) {
  int64_t kept = 0;
  for (int64_t i = 0; i < c.count; ++i) {
    const size_t from = static_cast<size_t>(i), to = static_cast<size_t>(kept);
    c.ids[to] = c.ids[from];
    c.values[to] = c.values[from];
    kept += c.values[from] >= threshold;
  }
  c.count = kept;
}

void divide(float temperature, Candidates& c) {
  if (temperature == 1.0f) return;
  for (int64_t i = 0; i < c.count; ++i) c.values[static_cast<size_t>(i)] /= temperature;
}

// All tokens whose divided value is at least `threshold`.
void collect_from(const KernelTable& kernels, const Scaled& scaled, float threshold, Candidates& c) {
  const Row& row = scaled.row;
  const bool same = scaled.temperature == 1.0f;
  const float bound = same ? std::max(LOWEST, threshold) : scaled.undivided(threshold);
  c.count = kernels.sampling.collect(row.x, row.maxima, row.vocab, bound, c.ids.data(), c.values.data());
  if (same) return;
  divide(scaled.temperature, c);
  keep_from(threshold, c);
}

// The least divided value that min-p and top-k keep, and the candidates down to it.
float collect_kept(const KernelTable& kernels, const Scaled& scaled, const Filters& f, Candidates& c) {
  float threshold = LOWEST;
  if (f.min_p > 0) threshold = scaled.best + static_cast<float>(std::log(static_cast<double>(f.min_p)));
  if (f.top_k <= 0) {
    collect_from(kernels, scaled, threshold, c);
    return threshold;
  }
  const float at_least = f.min_p > 0 ? scaled.undivided(threshold) : LOWEST;
  collect_best(kernels, scaled.row, f.top_k, at_least, c);
  divide(scaled.temperature, c);
  if (c.count >= f.top_k) {
    c.order.assign(c.values.begin(), c.values.begin() + c.count);
    const auto kth = c.order.begin() + (f.top_k - 1);
    std::nth_element(c.order.begin(), kth, c.order.end(), std::greater<float>());
    threshold = std::max(threshold, *kth);
  }
  keep_from(threshold, c);
  return threshold;
}

// How far below the best one those are that have all but about `lost` of the mass, told from some of the tiles: the
// mass below a bound falls about exponentially with it. Infinite where none of the bounds is low enough.
double distance_of(const KernelTable& kernels, const Scaled& scaled, double lost) {
  constexpr float NEAREST = 2.0f;
  const int64_t tiles = tiles_of(scaled.row.vocab), step = std::max<int64_t>(1, tiles / SAMPLED_TILES);
  const float best = largest(scaled.row);
  float bounds[TAILS];
  double tails[TAILS];
  for (int i = 0; i < TAILS; ++i) bounds[i] = best - (NEAREST + static_cast<float>(i)) * scaled.temperature;
  kernels.sampling.tails(scaled.row.x, scaled.row.vocab, step, best, scaled.exponent(), bounds, tails);
  const double target = 0.9 * lost * static_cast<double>((tiles + step - 1) / step) / static_cast<double>(tiles);
  for (int i = 0; i < TAILS; ++i) {
    if (tails[i] > target) continue;
    const double short_of = i == 0 ? 0 : std::log(target / tails[i]) / std::log(tails[i - 1] / tails[i]);
    return static_cast<double>(NEAREST) + i - std::clamp(short_of, 0.0, 1.0);
  }
  return std::numeric_limits<double>::infinity();
}

// Candidates that weigh at least top_p of `total`, so that all that top-p keeps are among them. Where the estimate does
// not reach, the weight of one token below the k-th share of what may be lost is tried, for a growing k.
void collect_mass(const KernelTable& kernels, const Scaled& scaled, float top_p, double total, double error,
                  Candidates& c) {
  const double lost = std::max(1e-9, 1.0 - static_cast<double>(top_p)) * total;
  const auto suffices = [&](double distance) {
    collect_from(kernels, scaled, scaled.best - static_cast<float>(distance), c);
    return kernels.sampling.weigh(c.values.data(), c.count, scaled.best, c.weights.data()) >=
           (static_cast<double>(top_p) + error) * total;
  };
  const double estimate = distance_of(kernels, scaled, lost);
  if (std::isfinite(estimate) && (suffices(estimate) || suffices(estimate + 0.5))) return;
  for (const double share : {0x1p13, 0x1p15, 0x1p18})
    if (suffices(std::max(0.0, std::log(share / lost)))) return;
  suffices(std::numeric_limits<double>::infinity());
}

// Whether the tokens that rank before the winner weigh less than top_p of all tokens down to `threshold`, in doubles.
bool is_kept_exactly(const Scaled& scaled, float threshold, float top_p, const Winner& winner) {
  double total = 0, before = 0;
  for (int64_t i = 0; i < scaled.row.vocab; ++i) {
    const float value = scaled.at(i);
    if (!(value >= threshold)) continue;
    const double weight = std::exp(static_cast<double>(value - scaled.best));
    total += weight;
    if (value > winner.value || (value == winner.value && i < winner.token)) before += weight;
  }
  return before < static_cast<double>(top_p) * total;
}

Winner draw_listed(const KernelTable& kernels, const NoiseKey& key, float best, Candidates& c) {
  int64_t first = 0;
  while (c.values[static_cast<size_t>(first)] != best) ++first;
  Winner winner = start(key, c.ids[static_cast<size_t>(first)], best);
  for (int64_t i = 0; i < c.count; i += TILE) {
    const float reach = static_cast<float>(winner.score - (std::fabs(winner.score) + 100) * 1e-6);
    const int found = kernels.sampling.contend(key, c.ids.data() + i, c.values.data() + i, std::min(TILE, c.count - i),
                                               reach, c.contenders.data());
    for (int n = 0; n < found; ++n) {
      const Contender& one = c.contenders[static_cast<size_t>(n)];
      const size_t place = static_cast<size_t>(i + one.place);
      winner.meet(c.ids[place], c.values[place], one.bits);
    }
  }
  return winner;
}

// What ranks before the winner remains.
void keep_before(const Winner& winner, Candidates& c) {
  int64_t kept = 0;
  for (int64_t i = 0; i < c.count; ++i) {
    const size_t from = static_cast<size_t>(i), to = static_cast<size_t>(kept);
    const float value = c.values[from];
    if (!(value > winner.value || (value == winner.value && c.ids[from] < winner.token))) continue;
    c.ids[to] = c.ids[from];
    c.values[to] = value;
    c.weights[to] = c.weights[from];
    ++kept;
  }
  c.count = kept;
}

int32_t draw_filtered(const KernelTable& kernels, const Scaled& scaled, const Filters& f, const NoiseKey& key,
                      Candidates& c) {
  // Of sums beside their exact values: 1e-5 for the kernels' own rounding, the rest for that of divided values.
  const double size = std::fabs(static_cast<double>(scaled.best));
  const double error = 1e-5 + (scaled.temperature == 1.0f ? 0 : 4e-7 * size);
  float threshold = LOWEST;
  double total = 0;
  if (f.min_p > 0 || f.top_k > 0) {
    threshold = collect_kept(kernels, scaled, f, c);
    if (f.top_p < 1) total = kernels.sampling.weigh(c.values.data(), c.count, scaled.best, c.weights.data());
  } else {
    const Row& row = scaled.row;
    total = kernels.sampling.mass(row.x, row.maxima, row.vocab, largest(row), scaled.exponent());
    collect_mass(kernels, scaled, f.top_p, total, error, c);
  }
  while (true) {
    const Winner winner = draw_listed(kernels, key, scaled.best, c);
    if (!(f.top_p < 1)) return winner.token;
    const double before = kernels.sampling.weight_before(c.ids.data(), c.values.data(), c.weights.data(), c.count,
                                                         winner.value, winner.token);
    if (before == 0) return winner.token;  // the best one stays whatever top_p is
    const double excess = before - static_cast<double>(f.top_p) * total;
    if (excess < -error * total) return winner.token;
    if (excess < error * total && is_kept_exactly(scaled, threshold, f.top_p, winner)) return winner.token;
    keep_before(winner, c);
  }
}

int32_t draw_from_all(const KernelTable& kernels, const Scaled& scaled, const NoiseKey& key, Candidates& c) {
  const Row& row = scaled.row;
  Winner winner = start(key, first_at(row, largest(row)), scaled.best);
  for (int64_t t = 0; t < tiles_of(row.vocab); ++t) {
    const float peak = row.maxima[t] / scaled.temperature;
    if (!(static_cast<double>(peak) + LARGEST_GUMBEL >= winner.score)) continue;
    const uint32_t limit = largest_bits(peak, winner.score);
    const int found = kernels.sampling.contend_tile(key, static_cast<int32_t>(t * TILE), limit, c.contenders.data());
    for (int n = 0; n < found; ++n) {
      const Contender& one = c.contenders[static_cast<size_t>(n)];
      if (one.place >= row.vocab) continue;
      const float value = scaled.at(one.place);
      if (value >= LOWEST && static_cast<double>(value) + gumbel_bound(one.bits) >= winner.score)
        winner.meet(one.place, value, one.bits);
    }
  }
  return winner.token;
}

}  // namespace

void Candidates::reserve(int64_t vocab) {
  const size_t room = static_cast<size_t>(vocab + SPARE);
  if (ids.size() >= room) return;
  ids.resize(room);
  values.resize(room);
  weights.resize(room);
  contenders.resize(static_cast<size_t>(TILE));
}

float largest(const Row& row) {
  float best = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < tiles_of(row.vocab); ++t) {
    if (std::isnan(row.maxima[t])) return row.maxima[t];
    best = std::max(best, row.maxima[t]);
  }
  return best;
}

int32_t first_at(const Row& row, float value) {
  int64_t tile = 0;
  while (!(row.maxima[tile] >= value)) ++tile;
  int64_t token = tile * TILE;
  while (!(row.x[token] >= value)) ++token;
  return static_cast<int32_t>(token);
}

void collect_best(const KernelTable& kernels, const Row& row, int64_t k, float at_least, Candidates& c) {
  const SamplingKernels& s = kernels.sampling;
  const int64_t tiles = tiles_of(row.vocab);
  c.order.assign(row.maxima, row.maxima + tiles);
  const auto kth = c.order.begin() + (std::min(k, tiles) - 1);
  std::nth_element(c.order.begin(), kth, c.order.end(), std::greater<float>());
  float bound = std::max(at_least, *kth);
  if (k > tiles && bound > at_least) {
    const double best = static_cast<double>(largest(row));
    double distance = std::max(best - static_cast<double>(bound), 1e-3);
    while (bound > at_least && s.count_from(row.x, row.maxima, row.vocab, bound) < k) {
      distance *= 1.25;
      bound = std::max(at_least, static_cast<float>(std::max(best - distance, static_cast<double>(LOWEST))));
    }
  }
  // What is a little less may tie with the k-th after division by a temperature.
  const float slack = std::fabs(bound) * 1e-6f + 1e-30f;
  bound = std::max(at_least, bound - slack);
  c.count = s.collect(row.x, row.maxima, row.vocab, bound, c.ids.data(), c.values.data());
}

int32_t draw(const KernelTable& kernels, const Row& row, float best, Filters filters, const NoiseKey& key,
             Candidates& candidates) {
  const Scaled scaled{row, filters.temperature, best / filters.temperature};
  if (!std::isfinite(scaled.best)) return first_at(row, best);  // a temperature too low for these logits: greedy
  candidates.reserve(row.vocab);
  if (filters.top_k >= row.vocab) filters.top_k = 0;
  filters.min_p = std::min(filters.min_p, 1.0f);
  const bool filtered = filters.min_p > 0 || filters.top_k > 0 || filters.top_p < 1;
  return filtered ? draw_filtered(kernels, scaled, filters, key, candidates)
                  : draw_from_all(kernels, scaled, key, candidates);
}

}  // namespace puna
