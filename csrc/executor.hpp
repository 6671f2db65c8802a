// Runs a whole step in one call: block moves, the program's body on all tokens, its head on the rows whose logits are
// wanted, and the sampling of every row. It is bound once to a program, to packed weights and to a KV pool.
//
// It knows block tables and flat arrays; it knows nothing of requests, and keeps nothing between steps but the pool.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention_step.hpp"
#include "experts.hpp"
#include "kernels.hpp"
#include "kv_pool.hpp"
#include "memory.hpp"
#include "packing.hpp"
#include "rows.hpp"
#include "sampler.hpp"
#include "thread_pool.hpp"

namespace puna {

// Order and fields as in puna/kernels/cpu/binding.py.
enum class OpKind : int {
  embed,
  embed_positions,
  rms_norm,
  layer_norm,
  linear,
  rope,
  store_kv,
  attend,
  activate,
  gate,
  add,
  scale,
  softcap,
  experts,
  scale_rows
};

struct Op {
  OpKind kind;
  std::vector<int64_t> ints;
  std::vector<float> floats;
  int rope_table = -1;  // found when the program is bound
  int experts = -1;     // likewise: whose matrices are side by side
};

// What one round of the threads does: all row-wise operators that follow each other, on each row in turn, the rounding
// of a linear's input among them; or all linears that read one input; or two linears whose outputs meet in a gate that
// the next linear reads, rounded at once; or one operator that looks at the whole step.
struct Stage {
  enum Kind { rows, linears, gated, whole } kind;
  std::vector<int> ops;    // indices into the list of operators
  int rounded = -1;        // rows, gated: the buffer that is rounded at the end
  bool rest = false;       // what rounding leaves is wanted, too
  bool logits = false;     // linears: they make the logits, of which the sampler wants the maxima of tiles
  int slot = 0;            // of rounded rows: where this stage leaves them or, of linears, finds them
  std::string name = {};   // for profiles
  int64_t bytes = 0;       // of packed weights
  int64_t operations = 0;  // a row
  bool experts = false;    // bytes are those of the experts that a step wanted
};

// Time spent in a stage since profiling began.
struct StageTime {
  std::string name;
  int64_t calls;
  int64_t nanoseconds;
  int64_t bytes;       // of packed weights, over all calls
  int64_t operations;  // likewise; a multiply-add counts as two
};

// Rows of a step that pass stages together.
struct RowRange {
  int64_t first, count;
};

struct OpList {
  std::vector<Op> ops;
  std::vector<Stage> stages;
};

struct Weight {
  FileType type;
  const uint8_t* raw = nullptr;  // of weights that are read row by row, unless from the matrix; the caller keeps the file mapped
  int64_t rows;
  int64_t width;
  Matrix matrix;              // of weights used by `linear`
  std::vector<float> vector;  // of weights used as vectors
};

struct StepView {
  int64_t tokens;
  int64_t sequences;
  int64_t table_width;
  int64_t moves_count;
  const int32_t* token_ids;
  const int32_t* positions;
  const int32_t* query_start;
  const int32_t* tables;
  const int32_t* moves;
  SampleView samples;
  const uint32_t* ready;  // 0 while another thread writes samples.mask; null: it is written
  SampleOut out;
  float* logits;  // [samples, vocab] or null
  StepTables places() const { return {tokens, sequences, table_width, positions, query_start, tables}; }
};

class Executor {
 public:
  // `threads`, `cores`, `pin`: see ThreadPool. Throws std::invalid_argument for a path this machine cannot run.
  Executor(const std::string& path, int threads, int cores, bool pin);

  // Returns the weight's number. `matrix` packs it for `linear`; `integer` chooses the integer layouts.
  int add_weight(const std::string& type, const uint8_t* raw, size_t bytes, int64_t rows, int64_t width, bool matrix,
                 bool integer);

  void bind(std::vector<int64_t> buffer_widths, std::vector<Op> body, std::vector<Op> head, std::vector<KVLayer> layers,
            int hidden, int logits, PoolConfig pool);

  // Throws std::invalid_argument, before anything is computed, when an index leaves its range.
  void step(const StepView& view);

  // What drawing and scoring took in the last step.
  int64_t sample_nanoseconds() const { return sample_nanoseconds_; }

  // From now on times are kept by stage name; asking for them while on ends nothing.
  void profile(bool on);
  const std::vector<StageTime>& profile_times() const { return times_; }

  void set_progress(std::atomic<uint64_t>* counter) { progress_ = counter; }
  uint64_t progress() const { return progress_->load(std::memory_order_relaxed); }
  const char* path() const { return kernels_->name; }
  int threads() const { return pool_.threads(); }
  int engaged_threads() const { return pool_.engaged(); }
  size_t packed_bytes() const;
  size_t experts_scratch_bytes() const { return experts_.scratch_bytes(); }

  // Testing aid: sums over K begin at a group chosen by the number of rows in the batch, which is exactly the mistake
  // that the identity tests exist to catch.
  void break_batch_invariance(bool broken) { broken_order_ = broken; }

 private:
  struct Rotation {
    std::vector<float> inv_freq;
    float factor;
    std::vector<float> cos;  // [tokens, pairs]
    std::vector<float> sin;
  };

  // Rows of logits do not begin at equal places of memory pages: all rows of a tile would compete for the same lines
  // of the cache.
  int64_t stride(int buffer) const { return widths_[static_cast<size_t>(buffer)] + (buffer == logits_ ? 48 : 0); }
  void check(const StepView& view) const;
  void check_op(const Op& op) const;
  void plan(OpList& list);
  bool is_gated(const OpList& list, int gate) const;
  int gather_experts(const Op& op);
  void run_experts(const Op& op, std::vector<Floats>& buffers, RowRange rows);
  void make_rotations(const StepView& view);
  void run_head(const StepView& view);
  void run(const OpList& list, std::vector<Floats>& buffers, int64_t rows, const StepView& view);
  void run_stage(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows, const StepView& view);
  void run_rows(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows, const StepView& view);
  void run_linears(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows);
  void take_maxima(const LinearArgs& args, const LinearPart& part);
  void run_gated(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows);
  template <class Body>
  void run_panels(const Stage& stage, int64_t in_features, int64_t panels, int64_t rows, Body body);
  LinearArgs linear_args(const Op& op, std::vector<Floats>& buffers, RowRange rows);
  void run_row(const Op& op, std::vector<Floats>& buffers, int64_t row, const StepView& view);
  void embed(const Op& op, float* out, int64_t table_row, bool add);
  void note(const Stage& stage, int64_t rows, int64_t nanoseconds);

  using Clock = std::chrono::steady_clock;
  static int64_t nanoseconds_since(Clock::time_point begun) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begun).count();
  }

  const KernelTable* kernels_;
  ThreadPool pool_;
  Arena panels_;
  std::vector<std::unique_ptr<Weight>> weights_;
  std::vector<int64_t> widths_;
  OpList body_;
  OpList head_;
  KVPool kv_;
  AttentionStep attention_;
  ExpertsStep experts_;
  std::vector<ExpertMatrices> expert_matrices_;
  int hidden_ = 0;
  int logits_ = 0;
  std::vector<Floats> body_buffers_;
  std::vector<Floats> head_buffers_;
  std::vector<float> maxima_;  // of the tiles of head_buffers_[logits_]
  std::vector<Rotation> rotations_;
  RoundedRows rounded_[2];  // a gate is written while its input is read
  std::vector<LinearArgs> linear_jobs_;
  std::vector<SampleScratch> sample_scratch_;
  std::atomic<uint64_t> own_progress_{0};
  std::atomic<uint64_t>* progress_ = &own_progress_;
  bool broken_order_ = false;
  bool profiling_ = false;
  int64_t sample_nanoseconds_ = 0;
  std::vector<StageTime> times_;
};

}  // namespace puna
