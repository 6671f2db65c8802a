#include "executor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace puna {

namespace {

constexpr int64_t HEAD_ROWS = 32;      // rows whose logits are held at one time

const KernelTable* choose_path(const std::string& name) {
  const Paths paths = available_paths();
  if (name == "auto") return paths.tables[0];
  std::string known;
  for (int i = 0; i < paths.count; ++i) {
    if (name == paths.tables[i]->name) return paths.tables[i];
    known += std::string(i ? ", " : "") + paths.tables[i]->name;
  }
  throw std::invalid_argument("instruction path '" + name + "' cannot run here; this machine runs: auto, " + known);
}

// Until another thread has written the masks of a step. It may need this very core.
void wait_for_masks(const uint32_t* ready) {
  constexpr int YIELDS = 64;
  const std::atomic_ref<uint32_t> flag(*const_cast<uint32_t*>(ready));
  for (int looks = 0; flag.load(std::memory_order_acquire) == 0; ++looks) {
    if (looks < YIELDS)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

// Whether an operator needs the values that a buffer holds before it.
bool reads(const Op& op, int64_t buffer) {
  const auto is = [&](size_t i) { return op.ints[i] == buffer; };
  switch (op.kind) {
    case OpKind::embed: return false;
    case OpKind::rms_norm:
    case OpKind::layer_norm:
    case OpKind::activate:
    case OpKind::attend: return is(1);
    case OpKind::linear: return is(0) || (is(1) && op.ints[4] != 0);
    case OpKind::store_kv:
    case OpKind::gate: return is(1) || is(2);
    case OpKind::add:
    case OpKind::scale_rows: return is(0) || is(1);
    case OpKind::experts: return is(1) || is(2) || (is(0) && op.ints[9] != 0);
    case OpKind::embed_positions:
    case OpKind::rope:
    case OpKind::scale:
    case OpKind::softcap: return is(0);
  }
  return true;
}

// Whether an operator, which does not read it, leaves nothing of what a buffer held.
bool overwrites(const Op& op, int64_t buffer) {
  return op.kind != OpKind::store_kv && op.ints[op.kind == OpKind::linear ? 1 : 0] == buffer;
}

}  // namespace

Executor::Executor(const std::string& path, int threads, int cores, bool pin)
    : kernels_(choose_path(path)),
      pool_(std::clamp(threads, 1, 256), cores, pin),
      experts_(pool_.threads()),
      rounded_{RoundedRows(pool_.threads()), RoundedRows(pool_.threads())},
      sample_scratch_(static_cast<size_t>(pool_.threads())) {}

int Executor::add_weight(const std::string& type_name, const uint8_t* raw, size_t bytes, int64_t rows, int64_t width,
                         bool matrix, bool integer) {
  const FileType type = file_type(type_name);
  if (rows <= 0 || width <= 0 || row_bytes(type, width) * static_cast<size_t>(rows) != bytes)
    throw std::invalid_argument("the bytes of a weight do not match its shape");
  auto weight = std::make_unique<Weight>();
  weight->type = type;
  weight->rows = rows;
  weight->width = width;
  if (matrix) {
    Matrix& m = weight->matrix;
    m.by_rows = integer && kernels_->bf16;
    m.layout = packed_layout(type, integer, kernels_ != &portable_kernels);
    m.out_features = rows;
    m.in_features = width;
    m.panel_bytes = panel_bytes(m.layout, width);
    uint8_t* panels = panels_.allocate(m.packed_bytes());
    m.panels = panels;
    pool_.run(m.panel_count(), 4, [&](int64_t first, int64_t last, int) {
      pack_panels(type, m.layout, m.by_rows, raw, rows, width, first, last, panels);
    });
  } else if (rows == 1) {
    weight->vector.resize(static_cast<size_t>(width));
    decode_row(type, raw, width, weight->vector.data());
  } else {
    weight->raw = raw;
  }
  weights_.push_back(std::move(weight));
  return static_cast<int>(weights_.size()) - 1;
}

void Executor::bind(std::vector<int64_t> buffer_widths, std::vector<Op> body, std::vector<Op> head,
                    std::vector<KVLayer> layers, int hidden, int logits, PoolConfig config) {
  widths_ = std::move(buffer_widths);
  body_.ops = std::move(body);
  head_.ops = std::move(head);
  hidden_ = hidden;
  logits_ = logits;
  config.tiles = config.tiles && kernels_->cache_tiles;
  kv_ = KVPool(std::move(layers), config);
  rotations_.clear();
  expert_matrices_.clear();
  plan(body_);
  plan(head_);
  if (!head_.stages.empty()) {
    Stage& last = head_.stages.back();
    last.logits = last.kind == Stage::linears && last.ops.size() == 1 && head_.ops[static_cast<size_t>(last.ops[0])].ints[1] == logits;
  }
  maxima_.resize(static_cast<size_t>(HEAD_ROWS * tiles_of(widths_[static_cast<size_t>(logits)])));
  body_buffers_ = std::vector<Floats>(widths_.size());
  head_buffers_ = std::vector<Floats>(widths_.size());
  for (size_t b = 0; b < widths_.size(); ++b) head_buffers_[b].reserve(static_cast<size_t>(HEAD_ROWS * stride(static_cast<int>(b))));
}

// Cuts the operators into stages, and shares tables of rotation.
void Executor::plan(OpList& list) {
  list.stages.clear();
  int rounded = -1;  // the buffer whose rounded rows lie in rounded_[slot]
  int slot = 0;
  size_t rounding = 0;  // the stage that leaves them
  const auto rows_stage = [&]() -> Stage& {
    if (list.stages.empty() || list.stages.back().kind != Stage::rows || list.stages.back().rounded >= 0)
      list.stages.push_back({Stage::rows, {}});
    return list.stages.back();
  };
  for (int i = 0; i < static_cast<int>(list.ops.size()); ++i) {
    Op& op = list.ops[static_cast<size_t>(i)];
    check_op(op);
    if (op.kind == OpKind::store_kv || op.kind == OpKind::attend || op.kind == OpKind::experts) {
      if (op.kind != OpKind::store_kv && op.ints[0] == rounded) rounded = -1;
      if (op.kind == OpKind::experts) op.experts = gather_experts(op);
      list.stages.push_back({Stage::whole, {i}});
      continue;
    }
    if (op.kind != OpKind::linear) {
      if (op.ints[0] == rounded) rounded = -1;
      if (op.kind == OpKind::gate && !list.stages.empty() && is_gated(list, i)) {
        Stage& stage = list.stages.back();
        stage.kind = Stage::gated;
        stage.ops.push_back(i);
        stage.rounded = rounded = static_cast<int>(op.ints[0]);
        stage.slot = slot = 1 - slot;
        rounding = list.stages.size() - 1;
        continue;
      }
      rows_stage().ops.push_back(i);
      if (op.kind == OpKind::rope) {
        const std::vector<float> inv_freq(op.floats.begin() + 1, op.floats.end());
        for (size_t r = 0; r < rotations_.size(); ++r)
          if (rotations_[r].inv_freq == inv_freq && rotations_[r].factor == op.floats[0]) op.rope_table = static_cast<int>(r);
        if (op.rope_table < 0) {
          op.rope_table = static_cast<int>(rotations_.size());
          rotations_.push_back({inv_freq, op.floats[0], {}, {}});
        }
      }
      continue;
    }
    const int input = static_cast<int>(op.ints[0]), output = static_cast<int>(op.ints[1]);
    const Matrix& matrix = weights_[static_cast<size_t>(op.ints[2])]->matrix;
    if (matrix.takes_rounded() && rounded != input) {
      Stage& stage = rows_stage();
      stage.rounded = rounded = input;
      stage.slot = slot;
      rounding = list.stages.size() - 1;
    }
    if (matrix.takes_rest()) list.stages[rounding].rest = true;
    bool together = !list.stages.empty() && list.stages.back().kind == Stage::linears;
    for (const int other : together ? list.stages.back().ops : std::vector<int>{}) {
      const Op& before = list.ops[static_cast<size_t>(other)];
      together &= before.ints[0] == input && before.ints[1] != input && before.ints[1] != output;
    }
    if (!together) list.stages.push_back({Stage::linears, {}});
    list.stages.back().ops.push_back(i);
    list.stages.back().slot = slot;
    if (output == rounded) rounded = -1;
  }
  static const char* const names[] = {"embed", "embed_positions", "rms_norm", "layer_norm", "linear", "rope",   "store_kv",
                                      "attend", "activate",       "gate",     "add",        "scale",  "softcap", "experts",
                                      "scale_rows"};
  for (Stage& stage : list.stages) {
    for (const int i : stage.ops) {
      const Op& op = list.ops[static_cast<size_t>(i)];
      if (!stage.name.empty()) stage.name += " + ";
      stage.name += names[static_cast<int>(op.kind)];
      if (op.kind == OpKind::experts) {
        const Matrix& m = expert_matrices_[static_cast<size_t>(op.experts)].gate[0];
        const int64_t outputs = widths_[static_cast<size_t>(op.ints[0])];
        stage.name.append(" ").append(std::to_string(m.in_features)).append("x").append(std::to_string(m.out_features));
        stage.experts = true;
        stage.operations += 2 * op.ints[6] * m.out_features * (2 * m.in_features + outputs);
      }
      if (op.kind != OpKind::linear) continue;
      const Matrix& m = weights_[static_cast<size_t>(op.ints[2])]->matrix;
      stage.name.append(" ").append(std::to_string(m.in_features)).append("x").append(std::to_string(m.out_features));
      stage.bytes += static_cast<int64_t>(m.packed_bytes());
      stage.operations += 2 * m.in_features * m.out_features;
    }
    if (stage.rounded >= 0) stage.name += stage.name.empty() ? "round" : " + round";
  }
}

// Whether operator `gate` can be the end of the stage before it: that is the two linears it reads, and nothing reads their
// outputs or its own again, but linears that read its own rounded.
bool Executor::is_gated(const OpList& list, int gate) const {
  const Op& op = list.ops[static_cast<size_t>(gate)];
  const Stage& stage = list.stages.back();
  if (!kernels_->gated || stage.kind != Stage::linears || stage.ops != std::vector<int>{gate - 2, gate - 1}) return false;
  const auto multiplies = [&](const Op& linear) {
    return linear.kind == OpKind::linear && weights_[static_cast<size_t>(linear.ints[2])]->matrix.takes_rounded();
  };
  const Op& a = list.ops[static_cast<size_t>(gate - 2)];
  const Op& b = list.ops[static_cast<size_t>(gate - 1)];
  const int64_t outputs[2] = {a.ints[1], b.ints[1]};
  if (!multiplies(a) || !multiplies(b) || a.ints[4] || b.ints[4]) return false;
  if (!std::is_permutation(outputs, outputs + 2, op.ints.begin() + 1)) return false;
  size_t next = static_cast<size_t>(gate) + 1;
  const size_t first_reader = next;
  while (next < list.ops.size() && multiplies(list.ops[next]) && list.ops[next].ints[0] == op.ints[0]) ++next;
  if (next == first_reader) return false;
  const auto is_dead = [&](int64_t buffer, size_t from) {
    for (size_t i = from; i < list.ops.size(); ++i) {
      if (reads(list.ops[i], buffer)) return false;
      if (overwrites(list.ops[i], buffer)) return true;
    }
    return buffer != hidden_ && buffer != logits_;
  };
  return is_dead(op.ints[0], next) && std::all_of(outputs, outputs + 2, [&](int64_t output) {
    return output == op.ints[0] || is_dead(output, first_reader);
  });
}

// A stack of experts is as many weights, one after the other.
int Executor::gather_experts(const Op& op) {
  ExpertMatrices found;
  const int64_t count = widths_[static_cast<size_t>(op.ints[2])];
  for (int64_t e = 0; e < count; ++e) {
    found.gate.push_back(weights_[static_cast<size_t>(op.ints[3] + e)]->matrix);
    found.up.push_back(weights_[static_cast<size_t>(op.ints[4] + e)]->matrix);
    found.down.push_back(weights_[static_cast<size_t>(op.ints[5] + e)]->matrix);
  }
  expert_matrices_.push_back(std::move(found));
  return static_cast<int>(expert_matrices_.size()) - 1;
}

void Executor::profile(bool on) {
  profiling_ = on;
  if (on) times_.clear();
}

void Executor::note(const Stage& stage, int64_t rows, int64_t nanoseconds) {
  auto found = std::find_if(times_.begin(), times_.end(), [&](const StageTime& t) { return t.name == stage.name; });
  if (found == times_.end()) found = times_.insert(found, StageTime{stage.name, 0, 0, 0, 0});
  found->calls += 1;
  found->nanoseconds += nanoseconds;
  found->bytes += stage.experts ? experts_.bytes_read() : stage.bytes;
  found->operations += stage.operations * rows;
}

size_t Executor::packed_bytes() const {
  size_t total = 0;
  for (const auto& weight : weights_) total += weight->matrix.packed_bytes() + weight->vector.size() * sizeof(float);
  return total;
}

void Executor::step(const StepView& view) {
  check(view);
  const ThreadPool::Step awake(pool_);
  for (int64_t i = 0; i < view.moves_count; ++i) {
    kv_.move(view.moves + 3 * i);
    progress_->fetch_add(1, std::memory_order_relaxed);
  }
  for (size_t b = 0; b < widths_.size(); ++b) {
    if (static_cast<int>(b) != logits_) body_buffers_[b].reserve(static_cast<size_t>(view.tokens * widths_[b]));
  }
  attention_.begin(view.places());
  make_rotations(view);
  run(body_, body_buffers_, view.tokens, view);
  run_head(view);
}

void Executor::run_head(const StepView& view) {
  const int64_t width = widths_[static_cast<size_t>(hidden_)];
  const int64_t vocab = widths_[static_cast<size_t>(logits_)];
  float* logits = head_buffers_[static_cast<size_t>(logits_)].data();
  sample_nanoseconds_ = 0;
  for (int64_t first = 0; first < view.samples.count; first += HEAD_ROWS) {
    const int64_t rows = std::min(HEAD_ROWS, view.samples.count - first);
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(head_buffers_[static_cast<size_t>(hidden_)].data() + i * width,
                  body_buffers_[static_cast<size_t>(hidden_)].data() + view.samples.index[first + i] * width,
                  sizeof(float) * static_cast<size_t>(width));
    run(head_, head_buffers_, rows, view);
    if (first == 0 && view.ready && view.samples.mask) wait_for_masks(view.ready);
    const bool measured = !head_.stages.empty() && head_.stages.back().logits;
    const Clock::time_point begun = Clock::now();
    pool_.run(rows, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        sample_row(*kernels_, view.samples, first + i, logits + i * stride(logits_), vocab,
                   measured ? maxima_.data() + i * tiles_of(vocab) : nullptr, sample_scratch_[static_cast<size_t>(thread)], view.out);
    });
    const int64_t nanoseconds = nanoseconds_since(begun);
    sample_nanoseconds_ += nanoseconds;
    if (profiling_) note(Stage{.kind = Stage::whole, .ops = {}, .name = "sample"}, rows, nanoseconds);
    for (int64_t i = 0; view.logits && i < rows; ++i)
      std::memcpy(view.logits + (first + i) * vocab, logits + i * stride(logits_), sizeof(float) * static_cast<size_t>(vocab));
    progress_->fetch_add(1, std::memory_order_relaxed);
  }
}

void Executor::make_rotations(const StepView& view) {
  for (Rotation& r : rotations_) {
    const int64_t pairs = static_cast<int64_t>(r.inv_freq.size());
    r.cos.resize(static_cast<size_t>(view.tokens * pairs));
    r.sin.resize(static_cast<size_t>(view.tokens * pairs));
    pool_.run(view.tokens, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin * pairs; n < end * pairs; ++n) {
        const int64_t t = n / pairs, i = n % pairs;
        const double angle = static_cast<double>(view.positions[t]) * static_cast<double>(r.inv_freq[static_cast<size_t>(i)]);
        r.cos[static_cast<size_t>(t * pairs + i)] = static_cast<float>(std::cos(angle) * r.factor);
        r.sin[static_cast<size_t>(t * pairs + i)] = static_cast<float>(std::sin(angle) * r.factor);
      }
    });
  }
}

}  // namespace puna
