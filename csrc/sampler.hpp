// Draws or scores one row of logits, in the order that the Python side documents (kernels/reference/sampling.py):
// allowed, banned, bias, penalties (row_edits.cpp), argmax for greedy rows, temperature, min-p, top-k, top-p, draw
// (draw.cpp).
//
// The draw is the argmax of logit + Gumbel noise, the noise keyed by (seed, position, token) through Philox 4x32-10,
// so it depends on nothing else: not on the batch, not on threads, not on what was drawn before.
#pragma once

#include <cstdint>
#include <vector>

#include "draw.hpp"
#include "kernels.hpp"
#include "row_edits.hpp"

namespace puna {

// Views of the arrays of puna.kernels.batch.SampleRows.
struct SampleView {
  int64_t count = 0;
  const int32_t* index;
  const int32_t* target;
  const int32_t* num_logprobs;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const float* repetition;
  const float* frequency;
  const float* presence;
  const uint64_t* seed;
  const int32_t* position;
  const int32_t* history;  // [history_rows, history_width]
  int64_t history_rows;
  int64_t history_width;
  const int32_t* history_row;
  const int32_t* prompt_len;
  const int32_t* total_len;
  const int32_t* allowed_start;
  const int32_t* allowed_ids;
  const int32_t* banned_start;
  const int32_t* banned_ids;
  const int32_t* bias_start;
  const int32_t* bias_ids;
  const float* bias_values;
  const uint32_t* mask;  // [count, mask_words] or null
  int64_t mask_words;
};

struct SampleOut {
  int32_t* tokens;
  float* logprob;
  int32_t* rank;
  int32_t* top_ids;  // [count, top_width]
  float* top_logprobs;
  int64_t top_width;
};

// One thread's working memory.
struct SampleScratch {
  std::vector<float> maxima;  // of the raw row
  RowEdits edits;
  Candidates candidates;
};

// Throws std::invalid_argument where an index leaves its range; `rows` are those that `index` chooses from.
void check_samples(const SampleView& samples, const SampleOut& out, int64_t rows, int64_t vocab);

constexpr int32_t NO_TOKEN = -1;      // the row's logits are not numbers: the sequence cannot go on
constexpr int32_t NOTHING_LEFT = -2;  // no token is allowed in this row

// `logits` are as they were when it returns. `maxima` are those of SamplingKernels::tile_maxima, for a head that has taken
// them while it wrote the logits; null: they are taken here.
void sample_row(const KernelTable& kernels, const SampleView& rows, int64_t s, float* logits, int64_t vocab,
                const float* maxima, SampleScratch& scratch, const SampleOut& out);

}  // namespace puna
