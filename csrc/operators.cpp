// How the executor runs a stage: the operators of one row, and linears over panels and blocks of rows.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "executor.hpp"
#include "routing.hpp"

namespace puna {

namespace {

constexpr int64_t ROW_GRAIN = 2;    // fewer rows than this are quicker on the calling thread
constexpr int64_t RUNS_A_THREAD = 8;
constexpr int64_t LEAST_BLOCK_ROWS = 512;  // that pass stages together: some megabytes, which caches of two cores hold
constexpr int64_t UNITS_A_BLOCK = 8;  // whole tiles each
constexpr int64_t PANELS_A_TILE = TILE / PANEL;

// The first row of one of `blocks` parts of about the same size, all but the last of whole units.
int64_t first_of(int64_t b, int64_t blocks, int64_t rows, int64_t unit) {
  return b == blocks ? rows : rows * b / blocks / unit * unit;
}

}  // namespace

// Rows are independent of each other but in stages that look at the whole step. Many of them pass the stages between two
// of those in blocks, so that what a block leaves for its next stage is still near: each thread's own rows of it, for
// parts of linears go to threads block of rows after block of rows, too.
void Executor::run(const OpList& list, std::vector<Floats>& buffers, int64_t rows, const StepView& view) {
  const int64_t block = std::max(LEAST_BLOCK_ROWS, pool_.threads() * kernels_->block_rows(1));
  const int64_t blocks = std::max<int64_t>(1, rows / block), unit = block / UNITS_A_BLOCK;
  const std::vector<Stage>& stages = list.stages;
  for (size_t begin = 0, end = 0; begin < stages.size(); begin = end) {
    const bool whole = stages[begin].kind == Stage::whole;
    end = begin + 1;
    while (!whole && end < stages.size() && stages[end].kind != Stage::whole) ++end;
    for (int64_t b = 0; b < (whole ? 1 : blocks); ++b) {
      const int64_t first = first_of(b, blocks, rows, unit);
      const RowRange range{first, whole ? rows : first_of(b + 1, blocks, rows, unit) - first};
      for (size_t i = begin; i < end; ++i) {
        const Clock::time_point begun = profiling_ ? Clock::now() : Clock::time_point{};
        run_stage(list, stages[i], buffers, range, view);
        if (profiling_) note(stages[i], range.count, nanoseconds_since(begun));
        progress_->fetch_add(stages[i].ops.size(), std::memory_order_relaxed);
      }
    }
  }
}

void Executor::run_stage(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows, const StepView& view) {
  if (stage.kind == Stage::rows) return run_rows(list, stage, buffers, rows, view);
  if (stage.kind == Stage::linears) return run_linears(list, stage, buffers, rows);
  if (stage.kind == Stage::gated) return run_gated(list, stage, buffers, rows);
  const Op& op = list.ops[static_cast<size_t>(stage.ops[0])];
  if (op.kind == OpKind::experts) return run_experts(op, buffers, rows);
  const auto buffer = [&](size_t i) { return buffers[static_cast<size_t>(op.ints[i])].data(); };
  if (op.kind == OpKind::store_kv)
    return kv_.store(*kernels_, pool_, view.places(), static_cast<size_t>(op.ints[0]), buffer(1), buffer(2));
  const AttendShape shape{static_cast<size_t>(op.ints[2]), op.ints[3], static_cast<int>(op.ints[6]), op.floats[0], op.floats[1]};
  attention_.run(*kernels_, pool_, kv_, shape, buffer(1), buffer(0));
}

void Executor::run_experts(const Op& op, std::vector<Floats>& buffers, RowRange rows) {
  const auto buffer = [&](size_t i) { return buffers[static_cast<size_t>(op.ints[i])].data(); };
  experts_.run(*kernels_, pool_,
               {&expert_matrices_[static_cast<size_t>(op.experts)], buffer(1), buffer(2), buffer(0), rows.count, op.ints[6],
                static_cast<int>(op.ints[7]), op.ints[8] != 0, op.floats[0], op.ints[9] != 0, broken_order_});
}

void Executor::run_rows(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows, const StepView& view) {
  const size_t input = static_cast<size_t>(std::max(stage.rounded, 0));
  QuantizedRows rounded{};
  if (stage.rounded >= 0) rounded = rounded_[stage.slot].prepare(rows.count, widths_[input], kernels_->bf16, stage.rest);
  pool_.run(rows.count, ROW_GRAIN, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = rows.first + i;
      for (const int op : stage.ops) run_row(list.ops[static_cast<size_t>(op)], buffers, row, view);
      if (stage.rounded >= 0) kernels_->quantize(buffers[input].data() + row * widths_[input], widths_[input], rounded, i);
    }
  });
}

LinearArgs Executor::linear_args(const Op& op, std::vector<Floats>& buffers, RowRange rows) {
  const Matrix& m = weights_[static_cast<size_t>(op.ints[2])]->matrix;
  LinearArgs args{};
  args.matrix = &m;
  args.x = buffers[static_cast<size_t>(op.ints[0])].data() + rows.first * m.in_features;
  args.rows = rows.count;
  args.bias = op.ints[3] < 0 ? nullptr : weights_[static_cast<size_t>(op.ints[3])]->vector.data();
  args.out_stride = stride(static_cast<int>(op.ints[1]));
  args.out = buffers[static_cast<size_t>(op.ints[1])].data() + rows.first * args.out_stride;
  args.accumulate = op.ints[4] != 0;
  args.first_group = broken_order_ ? rows.count % m.groups() : 0;
  return args;
}

// Parts of `panels` panels and `rows` rows to the threads, block of rows after block of rows. Where the sampler wants the
// maxima of tiles, a part is the panels of one tile, and all rows.
template <class Body>
void Executor::run_panels(const Stage& stage, int64_t in_features, int64_t panels, int64_t rows, Body body) {
  const int64_t block = kernels_->block_rows(in_features);
  const int64_t blocks = stage.logits ? 1 : std::max<int64_t>(1, rows / block), unit = block / UNITS_A_BLOCK;
  const int64_t items = panels * blocks;
  int64_t grain = std::max<int64_t>(1, items / (pool_.threads() * RUNS_A_THREAD));
  if (stage.logits) grain = (grain + PANELS_A_TILE - 1) / PANELS_A_TILE * PANELS_A_TILE;
  pool_.run(items, grain, [&](int64_t first, int64_t last, int thread) {
    while (first < last) {
      const int64_t b = first / panels, panel = first % panels;
      int64_t panel_end = std::min(panels, panel + last - first);
      if (stage.logits) panel_end = std::min(panel_end, panel + PANELS_A_TILE);
      body(LinearPart{panel, panel_end, first_of(b, blocks, rows, unit), first_of(b + 1, blocks, rows, unit)}, thread);
      first += panel_end - panel;
    }
  });
}

// All panels of all matrices are one run of items.
void Executor::run_linears(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows) {
  std::vector<LinearArgs>& jobs = linear_jobs_;
  jobs.clear();
  int64_t panels = 0;
  for (const int i : stage.ops) {
    jobs.push_back(linear_args(list.ops[static_cast<size_t>(i)], buffers, rows));
    panels += jobs.back().matrix->panel_count();
  }
  run_panels(stage, jobs.front().matrix->in_features, panels, rows.count, [&](LinearPart part, int thread) {
    for (LinearArgs args : jobs) {
      const int64_t count = args.matrix->panel_count();
      const LinearPart own{part.panel, std::min(count, part.panel_end), part.row, part.row_end};
      if (own.panel < own.panel_end) {
        if (args.matrix->takes_rounded()) args.quantized = rounded_[stage.slot].for_thread(*kernels_, thread);
        kernels_->linear(args, own);
        if (stage.logits) take_maxima(args, own);
      }
      part.panel = std::max<int64_t>(0, part.panel - count);
      part.panel_end -= count;
    }
  });
}

// Of the tile that was just written, while it is in the cache. Its panels are all of one part: parts begin with tiles.
void Executor::take_maxima(const LinearArgs& args, const LinearPart& part) {
  const int64_t vocab = args.matrix->out_features, tile = part.panel / PANELS_A_TILE;
  const int64_t count = std::min(TILE, vocab - tile * TILE);
  for (int64_t row = part.row; row < part.row_end; ++row)
    kernels_->sampling.tile_maxima(args.out + row * args.out_stride + tile * TILE, count,
                                   maxima_.data() + row * tiles_of(vocab) + tile);
}

void Executor::run_gated(const OpList& list, const Stage& stage, std::vector<Floats>& buffers, RowRange rows) {
  const Op& gate = list.ops[static_cast<size_t>(stage.ops[2])];
  GatedArgs args{};
  for (int i = 0; i < 2; ++i) {
    const Op& op = list.ops[static_cast<size_t>(stage.ops[static_cast<size_t>(i)])];
    (op.ints[1] == gate.ints[1] ? args.gate : args.up) = linear_args(op, buffers, rows);
  }
  args.kind = static_cast<int>(gate.ints[3]);
  const int64_t width = widths_[static_cast<size_t>(gate.ints[0])];
  args.out = rounded_[stage.slot].prepare(rows.count, width, kernels_->bf16, stage.rest);
  const Matrix& gates = *args.gate.matrix;
  run_panels(stage, gates.in_features, gates.panel_count(), rows.count, [&](const LinearPart& part, int thread) {
    GatedArgs own = args;
    own.gate.quantized = own.up.quantized = rounded_[1 - stage.slot].for_thread(*kernels_, thread);
    kernels_->gated(own, part);
  });
}

void Executor::run_row(const Op& op, std::vector<Floats>& buffers, int64_t row, const StepView& view) {
  const auto width = [&](size_t i) { return widths_[static_cast<size_t>(op.ints[i])]; };
  const auto at = [&](size_t i) { return buffers[static_cast<size_t>(op.ints[i])].data() + row * stride(static_cast<int>(op.ints[i])); };
  const auto vector = [&](size_t i) {
    return op.ints[i] < 0 ? nullptr : weights_[static_cast<size_t>(op.ints[i])]->vector.data();
  };
  switch (op.kind) {
    case OpKind::embed: embed(op, at(0), view.token_ids[row], false); break;
    case OpKind::embed_positions: embed(op, at(0), view.positions[row] + op.ints[2], true); break;
    case OpKind::rms_norm: {
      const int64_t group = op.ints[3] ? op.ints[3] : width(0);
      for (int64_t i = 0; i < width(0); i += group) kernels_->rms_norm(at(1) + i, vector(2), at(0) + i, group, op.floats[0]);
      break;
    }
    case OpKind::layer_norm: kernels_->layer_norm(at(1), vector(2), vector(3), at(0), width(0), op.floats[0]); break;
    case OpKind::rope: {
      const Rotation& table = rotations_[static_cast<size_t>(op.rope_table)];
      const int64_t pairs = static_cast<int64_t>(table.inv_freq.size());
      kernels_->rope(at(0), table.cos.data() + row * pairs, table.sin.data() + row * pairs, op.ints[1], op.ints[2], pairs,
                     op.ints[3] == 0);
      break;
    }
    case OpKind::activate: kernels_->gate(at(1), nullptr, at(0), width(0), static_cast<int>(op.ints[2])); break;
    case OpKind::gate: kernels_->gate(at(1), at(2), at(0), width(0), static_cast<int>(op.ints[3])); break;
    case OpKind::add: kernels_->add(at(1), at(0), width(0)); break;
    case OpKind::scale:
      for (int64_t i = 0; i < width(0); ++i) at(0)[i] *= op.floats[0];
      break;
    case OpKind::softcap:
      for (int64_t i = 0; i < width(0); ++i) at(0)[i] = op.floats[0] * std::tanh(at(0)[i] / op.floats[0]);
      break;
    case OpKind::scale_rows: {
      const float factor = sigmoid_of(*at(1));
      for (int64_t i = 0; i < width(0); ++i) at(0)[i] *= factor;
      break;
    }
    case OpKind::linear:
    case OpKind::store_kv:
    case OpKind::experts:
    case OpKind::attend: break;  // stages of their own
  }
}

void Executor::embed(const Op& op, float* out, int64_t table_row, bool add) {
  const Weight& weight = *weights_[static_cast<size_t>(op.ints[1])];
  const auto read = [&](float* to) {
    if (weight.matrix.panels && !weight.raw) return unpack_row(weight.matrix, table_row, to);
    if (!weight.raw) return static_cast<void>(std::copy(weight.vector.begin(), weight.vector.end(), to));
    const size_t bytes = row_bytes(weight.type, weight.width);
    decode_row(weight.type, weight.raw + static_cast<size_t>(table_row) * bytes, weight.width, to);
  };
  if (!add) return read(out);
  std::vector<float> values(static_cast<size_t>(weight.width));
  read(values.data());
  kernels_->add(values.data(), out, weight.width);
}

}  // namespace puna
