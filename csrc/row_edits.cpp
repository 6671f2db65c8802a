#include "row_edits.hpp"

#include <algorithm>
#include <limits>

#include "sampler.hpp"

namespace puna {

namespace {

constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

bool allows_all(const uint32_t* words, int64_t vocab) {
  for (int64_t w = 0; w < vocab / 32; ++w)
    if (words[w] != 0xffffffffu) return false;
  const uint32_t rest = (1u << (vocab % 32)) - 1;
  return (vocab % 32 == 0) || (words[vocab / 32] & rest) == rest;
}

bool allows(const uint32_t* words, int32_t token) { return (words[token / 32] >> (token % 32) & 1u) != 0; }

}  // namespace

void RowEdits::set(float* x, int32_t token, float value) {
  changes_.push_back({x + token, x[token]});
  x[token] = value;
  const size_t tile = static_cast<size_t>(token / TILE);
  if (touched_[tile]) return;
  touched_[tile] = 1;
  tiles_.push_back(static_cast<int32_t>(tile));
}

Row RowEdits::apply(const KernelTable& kernels, const SampleView& rows, int64_t s, float* logits, int64_t vocab,
                    const float* maxima) {
  const auto has = [s](const int32_t* start) { return start[s] < start[s + 1]; };
  const bool penalised = rows.repetition[s] != 1.0f || rows.frequency[s] != 0.0f || rows.presence[s] != 0.0f;
  const uint32_t* mask = rows.mask ? rows.mask + s * rows.mask_words : nullptr;
  if (mask && allows_all(mask, vocab)) mask = nullptr;
  const bool listed = has(rows.allowed_start);
  if (!listed && !mask && !has(rows.banned_start) && !has(rows.bias_start) && !penalised) return {logits, vocab, maxima};

  const size_t tiles = static_cast<size_t>(tiles_of(vocab));
  touched_.resize(tiles);
  maxima_.assign(maxima, maxima + tiles);
  float* x = logits;
  if (listed) {
    if (empty_.size() != static_cast<size_t>(vocab)) empty_.assign(static_cast<size_t>(vocab), MINUS_INFINITY);
    x = empty_.data();
    std::fill(maxima_.begin(), maxima_.end(), MINUS_INFINITY);
    for (int32_t i = rows.allowed_start[s]; i < rows.allowed_start[s + 1]; ++i) {
      const int32_t token = rows.allowed_ids[i];
      if (!mask || allows(mask, token)) set(x, token, logits[token]);
    }
  } else if (mask) {
    masked_.resize(static_cast<size_t>(vocab));
    x = masked_.data();
    kernels.sampling.mask_row(logits, mask, vocab, x, maxima_.data());
  }
  for (int32_t i = rows.banned_start[s]; i < rows.banned_start[s + 1]; ++i) set(x, rows.banned_ids[i], MINUS_INFINITY);
  for (int32_t i = rows.bias_start[s]; i < rows.bias_start[s + 1]; ++i)
    set(x, rows.bias_ids[i], x[rows.bias_ids[i]] + rows.bias_values[i]);
  if (penalised) penalise(rows, s, x);
  for (const int32_t t : tiles_) {
    maxima_[static_cast<size_t>(t)] = kernels.maximum(x + t * TILE, std::min(TILE, vocab - t * TILE));
    touched_[static_cast<size_t>(t)] = 0;
  }
  tiles_.clear();
  return {x, vocab, maxima_.data()};
}

void RowEdits::penalise(const SampleView& rows, int64_t s, float* x) {
  const float repetition = rows.repetition[s], frequency = rows.frequency[s], presence = rows.presence[s];
  const int32_t* tokens = rows.history + rows.history_row[s] * rows.history_width;
  for (int32_t i = 0; i < rows.total_len[s]; ++i) {
    const size_t token = static_cast<size_t>(tokens[i]);
    if (token >= counts_.size()) counts_.resize(token + 1);
    int32_t& count = counts_[token];  // 1 + occurrences in the output, 0: not seen
    if (count == 0) count = 1;
    if (i >= rows.prompt_len[s]) ++count;
  }
  for (int32_t i = 0; i < rows.total_len[s]; ++i) {
    const int32_t token = tokens[i];
    int32_t& count = counts_[static_cast<size_t>(token)];
    if (count == 0) continue;  // done already
    const int32_t occurrences = count - 1;
    count = 0;
    float value = x[token] > 0 ? x[token] / repetition : x[token] * repetition;
    value -= frequency * static_cast<float>(occurrences);
    if (occurrences > 0) value -= presence;
    set(x, token, value);
  }
}

void RowEdits::undo() {
  for (auto change = changes_.rbegin(); change != changes_.rend(); ++change) *change->place = change->before;
  changes_.clear();
}

}  // namespace puna
