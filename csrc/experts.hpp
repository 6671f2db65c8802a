// Mixtures of experts: each token is routed to a few of many feed-forwards, whose results are summed by its shares.
//
// The tokens of a step are gathered by expert, so that each expert's matrices pass once over all rows that want them:
//
//   token    0      1      2           rows by expert     e1: t0 t2 | e3: t1 | e6: t0 t1 t2
//   experts  6, 1   3, 6   1, 6        (a group each)     each group: gate and up, activation, down
//
// An expert that nobody wants has no group and costs nothing. A token's results are summed in the order of its experts,
// best first, by one thread: no bit depends on who shares the step. Knows matrices and rows, not programs.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "rows.hpp"
#include "thread_pool.hpp"

namespace puna {

// One matrix an expert. All of a kind have one shape; layouts may differ from kind to kind.
struct ExpertMatrices {
  std::vector<Matrix> gate;  // [width, in_features]
  std::vector<Matrix> up;    // likewise
  std::vector<Matrix> down;  // [out_features, width]
};

struct ExpertsArgs {
  const ExpertMatrices* matrices;
  const float* x;       // [rows, in_features]
  const float* scores;  // [rows, experts]
  float* out;           // [rows, out_features]
  int64_t rows;
  int64_t used;  // experts a token
  int kind;      // ActivationKind
  bool normalised;
  float scale;
  bool accumulate;
  bool broken_order;  // see Executor::break_batch_invariance
};

class ExpertsStep {
 public:
  explicit ExpertsStep(int threads);

  // More tokens than SCRATCH_BYTES have room for pass one block after the other.
  void run(const KernelTable& kernels, ThreadPool& pool, const ExpertsArgs& args);

  // Of packed weights, in the last run.
  int64_t bytes_read() const { return bytes_read_; }
  // Memory that is kept for the next run, in bytes.
  size_t scratch_bytes() const;

 private:
  // Rows of one expert; `first` counts rows of all groups, `padded` the same with each group filled up to whole tiles.
  struct Group {
    int32_t expert;
    int64_t first;
    int64_t rows;
    int64_t padded;
  };
  // Up to sixteen rows of a group, which are rounded together.
  struct Sixteen {
    size_t group;
    int64_t row;
    int64_t rows;
  };
  struct alignas(128) Own {
    std::vector<double> powers;
    Aligned<uint16_t> rounded;  // sixteen rows, before they are arranged
  };

  struct Block;  // tokens that pass together, and whom they are computed for
  void choose(const Block& block);
  void gather(const Block& block);
  template <class RowOf>
  void round(const Block& block, int64_t width, bool rest, RowOf row_of);
  QuantizedRows rounded_rows(const Group& group, int64_t groups) const;
  template <class Body>
  void run_panels(const Block& block, const Matrix& matrix, Body body);
  void multiply(const Block& block, const Group& group, const Matrix& matrix, const LinearPart& part, const float* x, float* out);
  void gate_and_up(const Block& block);
  void down(const Block& block);
  void combine(const Block& block);

  std::vector<int32_t> chosen_;  // [tokens, used]
  std::vector<float> shares_;    // likewise
  std::vector<int64_t> places_;  // likewise: its row among those of all groups
  std::vector<int64_t> tokens_;  // [rows of all groups]
  std::vector<int64_t> counts_;  // [experts]
  std::vector<Group> groups_;
  std::vector<Sixteen> sixteens_;
  std::vector<int64_t> starts_;  // of the groups' items in run_panels
  Floats gathered_;              // [rows, in_features], for layouts of real numbers
  Floats gate_;                  // [rows, width]
  Floats up_;                    // likewise
  Floats down_;                  // [rows, out_features]
  Aligned<RoundedGroup> records_;
  Aligned<RoundedGroup> fine_;
  Aligned<uint16_t> wide_;
  Aligned<uint16_t> bf16_;
  uint16_t* rest_ = nullptr;  // in bf16_, behind the rounded rows; null where no matrix takes it
  std::vector<Own> own_;
  int64_t bytes_read_ = 0;
};

}  // namespace puna
