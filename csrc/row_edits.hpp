// What is done to a row's logits before a token is drawn: allowed tokens, bitmask, banned tokens, bias, penalties.
//
// Most of it touches few tokens. Those are changed where they stand and put back afterwards, so that a row of a large
// vocabulary is not copied; the maxima of the tiles they stand in are taken again.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace puna {

struct SampleView;

// A row to draw from: values (finite or -inf) and the maximum of each tile.
struct Row {
  float* x;
  int64_t vocab;
  const float* maxima;
};

class RowEdits {
 public:
  // The edited row; valid until `undo`, which has to come before the next one.
  Row apply(const KernelTable& kernels, const SampleView& rows, int64_t s, float* logits, int64_t vocab,
            const float* maxima);
  void undo();

 private:
  struct Change {
    float* place;
    float before;
  };

  void set(float* x, int32_t token, float value);
  void penalise(const SampleView& rows, int64_t s, float* x);

  std::vector<Change> changes_;
  std::vector<float> maxima_;
  std::vector<uint8_t> touched_;  // a tile; all zero between rows
  std::vector<int32_t> tiles_;    // those that are touched
  std::vector<float> empty_;      // -inf everywhere between rows: what lists of allowed tokens are written into
  std::vector<float> masked_;
  std::vector<int32_t> counts_;   // a token; all zero between rows
};

}  // namespace puna
