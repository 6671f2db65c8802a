// Runs a whole step in one call: block moves, the program's body on all tokens, its head on the rows whose logits are
// wanted, and the sampling of every row. It is bound once to a program, to packed weights and to a KV pool.
//
// It knows block tables and flat arrays; it knows nothing of requests, and keeps nothing between steps but the pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention_step.hpp"
#include "kernels.hpp"
#include "kv_pool.hpp"
#include "memory.hpp"
#include "packing.hpp"
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
  softcap
};

struct Op {
  OpKind kind;
  std::vector<int64_t> ints;
  std::vector<float> floats;
  // Found when the program is bound:
  bool quantize_input = false;  // a linear whose input was not yet rounded since it was written
  int rope_table = -1;
};

struct Weight {
  FileType type;
  const uint8_t* raw = nullptr;  // of weights that are read row by row and not packed; the caller keeps the file mapped
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

  void set_progress(std::atomic<uint64_t>* counter) { progress_ = counter; }
  uint64_t progress() const { return progress_->load(std::memory_order_relaxed); }
  const char* path() const { return kernels_->name; }
  int threads() const { return pool_.threads(); }
  int engaged_threads() const { return pool_.engaged(); }
  size_t packed_bytes() const;

  // Testing aid: sums over K begin at a group chosen by the number of rows in the batch, which is exactly the mistake
  // that the identity tests exist to catch.
  void break_batch_invariance(bool broken) { broken_order_ = broken; }

 private:
  struct Quantized {
    std::vector<int8_t> q;
    std::vector<int8_t> fine;
    std::vector<float> scale;
    std::vector<int32_t> sum;
    std::vector<uint8_t> wide;
  };
  struct Rotation {
    std::vector<float> inv_freq;
    float factor;
    std::vector<float> cos;  // [tokens, pairs]
    std::vector<float> sin;
  };

  void check(const StepView& view) const;
  void check_op(const Op& op) const;
  void plan(std::vector<Op>& ops);
  void make_rotations(const StepView& view);
  void run_head(const StepView& view);
  void run(const Op& op, std::vector<std::vector<float>>& buffers, int64_t rows, const StepView& view);
  void embed(const Op& op, float* out, int64_t rows, const StepView& view, bool positions);
  void linear(const Op& op, const float* x, float* out, int64_t rows);
  void rope(const Op& op, float* x, int64_t rows);
  template <class Body>
  void each_row(int64_t rows, Body body);

  const KernelTable* kernels_;
  ThreadPool pool_;
  Arena panels_;
  std::vector<std::unique_ptr<Weight>> weights_;
  std::vector<int64_t> widths_;
  std::vector<Op> body_;
  std::vector<Op> head_;
  KVPool kv_;
  AttentionStep attention_;
  int hidden_ = 0;
  int logits_ = 0;
  std::vector<std::vector<float>> body_buffers_;
  std::vector<std::vector<float>> head_buffers_;
  std::vector<Rotation> rotations_;
  Quantized quantized_;
  std::vector<SampleScratch> sample_scratch_;
  std::atomic<uint64_t> own_progress_{0};
  std::atomic<uint64_t>* progress_ = &own_progress_;
  bool broken_order_ = false;
};

}  // namespace puna
