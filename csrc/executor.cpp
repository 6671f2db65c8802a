#include "executor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

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

}  // namespace

Executor::Executor(const std::string& path, int threads, int cores, bool pin)
    : kernels_(choose_path(path)),
      pool_(std::clamp(threads, 1, 256), cores, pin),
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
    m.layout = packed_layout(type, integer);
    m.out_features = rows;
    m.in_features = width;
    m.panel_bytes = panel_bytes(m.layout, width);
    uint8_t* panels = panels_.allocate(m.packed_bytes());
    m.panels = panels;
    pool_.run(m.panel_count(), 4, [&](int64_t first, int64_t last, int) {
      pack_panels(type, m.layout, raw, rows, width, first, last, panels);
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
  body_ = std::move(body);
  head_ = std::move(head);
  hidden_ = hidden;
  logits_ = logits;
  kv_ = KVPool(std::move(layers), config);
  rotations_.clear();
  plan(body_);
  plan(head_);
  body_buffers_.assign(widths_.size(), {});
  head_buffers_.assign(widths_.size(), {});
  for (size_t b = 0; b < widths_.size(); ++b)
    head_buffers_[b].resize(static_cast<size_t>(HEAD_ROWS * widths_[b]));
}

// Marks which linear must round its input first (the others find it rounded already), and shares tables of rotation.
void Executor::plan(std::vector<Op>& ops) {
  int rounded = -1;  // the buffer whose rounded rows are in quantized_
  for (Op& op : ops) {
    check_op(op);
    if (op.kind == OpKind::linear) {
      const bool integer = weights_[static_cast<size_t>(op.ints[2])]->matrix.layout != Layout::float32;
      op.quantize_input = integer && rounded != op.ints[0];
      if (integer) rounded = static_cast<int>(op.ints[0]);
      if (op.ints[1] == rounded) rounded = -1;
      continue;
    }
    // Every other operator names the buffer it writes first.
    if (op.kind != OpKind::store_kv && op.ints[0] == rounded) rounded = -1;
    if (op.kind == OpKind::rope) {
      const std::vector<float> inv_freq(op.floats.begin() + 1, op.floats.end());
      for (size_t i = 0; i < rotations_.size(); ++i)
        if (rotations_[i].inv_freq == inv_freq && rotations_[i].factor == op.floats[0]) op.rope_table = static_cast<int>(i);
      if (op.rope_table < 0) {
        op.rope_table = static_cast<int>(rotations_.size());
        rotations_.push_back({inv_freq, op.floats[0], {}, {}});
      }
    }
  }
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
    const size_t wanted = static_cast<size_t>(view.tokens * widths_[b]);
    if (static_cast<int>(b) != logits_ && body_buffers_[b].size() < wanted) body_buffers_[b].resize(wanted);
  }
  attention_.plan(view.places());
  make_rotations(view);
  for (const Op& op : body_) run(op, body_buffers_, view.tokens, view);
  run_head(view);
}

void Executor::run_head(const StepView& view) {
  const int64_t width = widths_[static_cast<size_t>(hidden_)];
  const int64_t vocab = widths_[static_cast<size_t>(logits_)];
  float* logits = head_buffers_[static_cast<size_t>(logits_)].data();
  for (int64_t first = 0; first < view.samples.count; first += HEAD_ROWS) {
    const int64_t rows = std::min(HEAD_ROWS, view.samples.count - first);
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(head_buffers_[static_cast<size_t>(hidden_)].data() + i * width,
                  body_buffers_[static_cast<size_t>(hidden_)].data() + view.samples.index[first + i] * width,
                  sizeof(float) * static_cast<size_t>(width));
    for (const Op& op : head_) run(op, head_buffers_, rows, view);
    pool_.run(rows, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i)
        sample_row(*kernels_, view.samples, first + i, logits + i * vocab, vocab, nullptr,
                   sample_scratch_[static_cast<size_t>(thread)], view.out);
    });
    if (view.logits)
      std::memcpy(view.logits + first * vocab, logits, sizeof(float) * static_cast<size_t>(rows * vocab));
    progress_->fetch_add(1, std::memory_order_relaxed);
  }
}

void Executor::make_rotations(const StepView& view) {
  for (Rotation& r : rotations_) {
    const int64_t pairs = static_cast<int64_t>(r.inv_freq.size());
    r.cos.resize(static_cast<size_t>(view.tokens * pairs));
    r.sin.resize(static_cast<size_t>(view.tokens * pairs));
    each_row(view.tokens, [&](int64_t t) {
      for (int64_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(view.positions[t]) * static_cast<double>(r.inv_freq[static_cast<size_t>(i)]);
        r.cos[static_cast<size_t>(t * pairs + i)] = static_cast<float>(std::cos(angle) * r.factor);
        r.sin[static_cast<size_t>(t * pairs + i)] = static_cast<float>(std::sin(angle) * r.factor);
      }
    });
  }
}

// Few rows are quicker on the calling thread than through the pool.
template <class Body>
void Executor::each_row(int64_t rows, Body body) {
  constexpr int64_t GRAIN = 4;
  pool_.run(rows, GRAIN, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) body(t);
  });
}

void Executor::run(const Op& op, std::vector<std::vector<float>>& buffers, int64_t rows, const StepView& view) {
  const auto buffer = [&](size_t i) { return buffers[static_cast<size_t>(op.ints[i])].data(); };
  const auto width = [&](size_t i) { return widths_[static_cast<size_t>(op.ints[i])]; };
  const auto vector = [&](size_t i) {
    return op.ints[i] < 0 ? nullptr : weights_[static_cast<size_t>(op.ints[i])]->vector.data();
  };
  switch (op.kind) {
    case OpKind::embed: embed(op, buffer(0), rows, view, false); break;
    case OpKind::embed_positions: embed(op, buffer(0), rows, view, true); break;
    case OpKind::rms_norm: {
      const int64_t group = op.ints[3] ? op.ints[3] : width(0);
      const int64_t groups = width(0) / group;
      each_row(rows, [&](int64_t t) {
        for (int64_t g = t * groups; g < (t + 1) * groups; ++g)
          kernels_->rms_norm(buffer(1) + g * group, vector(2), buffer(0) + g * group, group, op.floats[0]);
      });
      break;
    }
    case OpKind::layer_norm:
      each_row(rows, [&](int64_t t) {
        kernels_->layer_norm(buffer(1) + t * width(0), vector(2), vector(3), buffer(0) + t * width(0), width(0), op.floats[0]);
      });
      break;
    case OpKind::linear: linear(op, buffer(0), buffer(1), rows); break;
    case OpKind::rope: rope(op, buffer(0), rows); break;
    case OpKind::store_kv:
      kv_.store(*kernels_, pool_, view.places(), static_cast<size_t>(op.ints[0]), buffer(1), buffer(2));
      break;
    case OpKind::attend: {
      const AttendShape shape{static_cast<size_t>(op.ints[2]), op.ints[3], static_cast<int>(op.ints[6]), op.floats[0],
                              op.floats[1]};
      attention_.run(*kernels_, pool_, kv_, shape, buffer(1), buffer(0));
      break;
    }
    case OpKind::activate:
      each_row(rows, [&](int64_t t) {
        kernels_->gate(buffer(1) + t * width(0), nullptr, buffer(0) + t * width(0), width(0), static_cast<int>(op.ints[2]));
      });
      break;
    case OpKind::gate:
      each_row(rows, [&](int64_t t) {
        const int64_t at = t * width(0);
        kernels_->gate(buffer(1) + at, buffer(2) + at, buffer(0) + at, width(0), static_cast<int>(op.ints[3]));
      });
      break;
    case OpKind::add:
      each_row(rows, [&](int64_t t) { kernels_->add(buffer(1) + t * width(0), buffer(0) + t * width(0), width(0)); });
      break;
    case OpKind::scale:
      each_row(rows, [&](int64_t t) {
        for (int64_t i = t * width(0); i < (t + 1) * width(0); ++i) buffer(0)[i] *= op.floats[0];
      });
      break;
    case OpKind::softcap:
      each_row(rows, [&](int64_t t) {
        for (int64_t i = t * width(0); i < (t + 1) * width(0); ++i)
          buffer(0)[i] = op.floats[0] * std::tanh(buffer(0)[i] / op.floats[0]);
      });
      break;
  }
  progress_->fetch_add(1, std::memory_order_relaxed);
}

void Executor::embed(const Op& op, float* out, int64_t rows, const StepView& view, bool positions) {
  const Weight& weight = *weights_[static_cast<size_t>(op.ints[1])];
  const auto read = [&](int64_t row, float* to) {
    if (weight.matrix.panels) return unpack_row(weight.matrix, row, to);
    if (!weight.raw) return static_cast<void>(std::copy(weight.vector.begin(), weight.vector.end(), to));
    decode_row(weight.type, weight.raw + static_cast<size_t>(row) * row_bytes(weight.type, weight.width), weight.width, to);
  };
  each_row(rows, [&](int64_t t) {
    const int64_t row = positions ? view.positions[t] + op.ints[2] : view.token_ids[t];
    if (!positions) return read(row, out + t * weight.width);
    std::vector<float> values(static_cast<size_t>(weight.width));
    read(row, values.data());
    kernels_->add(values.data(), out + t * weight.width, weight.width);
  });
}

void Executor::linear(const Op& op, const float* x, float* out, int64_t rows) {
  const Weight& weight = *weights_[static_cast<size_t>(op.ints[2])];
  const Matrix& m = weight.matrix;
  LinearArgs args{};
  args.matrix = &m;
  args.x = x;
  args.rows = rows;
  args.bias = op.ints[3] < 0 ? nullptr : weights_[static_cast<size_t>(op.ints[3])]->vector.data();
  args.out = out;
  args.accumulate = op.ints[4] != 0;
  args.first_group = broken_order_ ? rows % m.groups() : 0;
  const size_t groups = static_cast<size_t>(rows * m.groups());
  if (m.layout != Layout::float32 && quantized_.scale.size() < groups) {
    quantized_.q.resize(groups * GROUP);
    quantized_.fine.resize(groups * GROUP);
    quantized_.scale.resize(groups);
    quantized_.sum.resize(groups);
    quantized_.wide.resize(groups);
  }
  args.quantized = {quantized_.q.data(), quantized_.fine.data(), quantized_.scale.data(), quantized_.sum.data(),
                    quantized_.wide.data()};
  if (op.quantize_input)
    each_row(rows, [&](int64_t t) {
      kernels_->quantize(x + t * m.in_features, m.in_features, args.quantized, t);
    });
  const int64_t panels = m.panel_count();
  const int64_t grain = std::max<int64_t>(1, panels / (pool_.threads() * 8));
  pool_.run(panels, grain, [&](int64_t first, int64_t last, int) { kernels_->linear(args, first, last); });
}

void Executor::rope(const Op& op, float* x, int64_t rows) {
  const int64_t heads = op.ints[1], head_dim = op.ints[2];
  const bool interleaved = op.ints[3] == 0;
  const Rotation& table = rotations_[static_cast<size_t>(op.rope_table)];
  const int64_t pairs = static_cast<int64_t>(table.inv_freq.size());
  each_row(rows, [&](int64_t t) {
    const float* cos = table.cos.data() + t * pairs;
    const float* sin = table.sin.data() + t * pairs;
    for (int64_t h = 0; h < heads; ++h) {
      float* head = x + (t * heads + h) * head_dim;
      for (int64_t i = 0; i < pairs; ++i) {
        float& a = head[interleaved ? 2 * i : i];
        float& b = head[interleaved ? 2 * i + 1 : i + pairs];
        const float turned = a * cos[i] - b * sin[i];
        b = a * sin[i] + b * cos[i];
        a = turned;
      }
    }
  });
}

}  // namespace puna
