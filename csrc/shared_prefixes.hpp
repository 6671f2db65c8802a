// Finds the sequences of a step whose block tables begin alike, so that attention reads what they share once for all.
//
//   sequence 0   a b c d | e      run 0: ranges of a b    for the tokens of 0, 1, 2
//   sequence 1   a b c d | f      run 1: ranges of c d    for those of 0, 1, which go on from what run 0 left
//   sequence 2   a b g   | h      what remains of each is its own
//
// Only whole ranges of ATTEND_RANGE keys are shared, and only by tokens that see all of them. It knows block ids,
// positions and lengths; it knows nothing of heads, of memory, or of what is computed with the ranges.
#pragma once

#include <cstdint>
#include <vector>

#include "kv_pool.hpp"

namespace puna {

// Ranges first_range .. last_range - 1 of `sequence` and of all others whose tokens stand at places first .. first +
// count - 1. Runs of a level have no tokens in common; each goes on from one of the level before, if from any.
struct SharedRun {
  int32_t sequence;
  int32_t first;
  int32_t count;
  int32_t first_range;
  int32_t last_range;
  int32_t level;
};

class SharedPrefixes {
 public:
  // `tile`: tokens that are computed together anyway; what saves no tile is not shared. `window`: 0 or what a token sees
  // of its past, itself included; who does not see its very first key shares nothing.
  void find(const StepTables& step, int block_size, int window, int32_t tile);

  // By level.
  const std::vector<SharedRun>& runs() const { return runs_; }
  // The token of the batch at each place: those of one sequence side by side, in their order.
  const std::vector<int32_t>& tokens() const { return tokens_; }
  // How many ranges of a sequence runs hold, and the place of its first token if there are any.
  int32_t ranges_of(int64_t sequence) const { return depths_.empty() ? 0 : depths_[static_cast<size_t>(sequence)]; }
  int32_t place_of(int64_t sequence) const { return places_[static_cast<size_t>(sequence)]; }

 private:
  // Members of `order_` that begin alike up to some depth.
  struct Branch {
    size_t begin;
    size_t end;
    int32_t depth;  // ranges that runs hold already
    int32_t level;
  };
  int32_t whole_ranges(int64_t sequence, int window, int32_t tile) const;
  int32_t alike(int32_t a, int32_t b) const;
  bool comes_before(int32_t a, int32_t b) const;
  void divide(Branch branch, int32_t tile);
  bool saves_tiles(const Branch& branch, int32_t ranges, int32_t tile) const;
  int32_t count(int32_t sequence) const { return step_.query_start[sequence + 1] - step_.query_start[sequence]; }
  const int32_t* table(int32_t sequence) const { return step_.tables + sequence * step_.table_width; }
  size_t entries(int32_t ranges) const;

  StepTables step_{};
  int64_t block_size_ = 1;
  std::vector<int32_t> whole_;  // by sequence: ranges that all its tokens see, of which none holds one of them
  std::vector<int32_t> order_;  // sequences that might share, those that begin alike side by side
  std::vector<int32_t> alike_;  // ranges in common of each one in `order_` and the next
  std::vector<SharedRun> runs_;
  std::vector<int32_t> depths_;
  std::vector<int32_t> places_;
  std::vector<int32_t> tokens_;
};

}  // namespace puna
