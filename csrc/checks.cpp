// Everything that is refused: programs that do not fit their weights when they are bound, and steps whose indices leave
// their range before anything of them is computed. Behind these checks the kernels trust their arguments.
#include <stdexcept>
#include <string>

#include "executor.hpp"

namespace puna {

namespace {

[[noreturn]] void out_of_range(const char* what, int64_t at, int64_t found, int64_t limit) {
  throw std::invalid_argument(std::string(what) + "[" + std::to_string(at) + "] is " + std::to_string(found) +
                              "; allowed: 0 to " + std::to_string(limit - 1));
}

void check_all(const char* what, const int32_t* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < 0 || values[i] >= limit) out_of_range(what, i, values[i], limit);
}

void check_ragged(const char* what, const int32_t* start, const int32_t* ids, int64_t count, int64_t vocab) {
  if (start[0] != 0) out_of_range(what, 0, start[0], 1);
  for (int64_t s = 0; s < count; ++s)
    if (start[s + 1] < start[s]) out_of_range(what, s + 1, start[s + 1], start[s]);
  check_all(what, ids, start[count], vocab);
}

}  // namespace

void Executor::check_op(const Op& op) const {
  const auto require = [](bool good) {
    if (!good) throw std::invalid_argument("the program does not fit its buffers or weights");
  };
  const auto width = [&](size_t i) {
    require(i < op.ints.size() && op.ints[i] >= 0 && op.ints[i] < static_cast<int64_t>(widths_.size()));
    return widths_[static_cast<size_t>(op.ints[i])];
  };
  const auto weight = [&](size_t i) -> const Weight& {
    require(i < op.ints.size() && op.ints[i] >= 0 && op.ints[i] < static_cast<int64_t>(weights_.size()));
    return *weights_[static_cast<size_t>(op.ints[i])];
  };
  switch (op.kind) {
    case OpKind::embed:
    case OpKind::embed_positions: require(weight(1).width == width(0)); break;
    case OpKind::rms_norm:
      require(width(0) == width(1) && static_cast<int64_t>(weight(2).vector.size()) == (op.ints[3] ? op.ints[3] : width(0)));
      require(op.ints[3] == 0 || width(0) % op.ints[3] == 0);
      break;
    case OpKind::layer_norm:
      require(width(0) == width(1) && static_cast<int64_t>(weight(2).vector.size()) == width(0));
      require(op.ints[3] < 0 || static_cast<int64_t>(weight(3).vector.size()) == width(0));
      break;
    case OpKind::linear:
      require(weight(2).matrix.in_features == width(0) && weight(2).matrix.out_features == width(1));
      require(op.ints[3] < 0 || static_cast<int64_t>(weight(3).vector.size()) == width(1));
      require(op.ints[0] != op.ints[1]);
      break;
    case OpKind::rope:
      require(width(0) == op.ints[1] * op.ints[2] && 2 * static_cast<int64_t>(op.floats.size() - 1) <= op.ints[2]);
      break;
    case OpKind::store_kv: {
      require(op.ints[0] >= 0 && op.ints[0] < static_cast<int64_t>(kv_.layers().size()));
      const KVLayer& layer = kv_.layers()[static_cast<size_t>(op.ints[0])];
      require(width(1) == layer.kv_heads * layer.head_dim && width(2) == width(1));
      break;
    }
    case OpKind::attend: {
      require(op.ints[2] >= 0 && op.ints[2] < static_cast<int64_t>(kv_.layers().size()));
      const KVLayer& layer = kv_.layers()[static_cast<size_t>(op.ints[2])];
      require(op.ints[4] == layer.kv_heads && op.ints[5] == layer.head_dim && op.ints[3] % op.ints[4] == 0);
      require(width(1) == op.ints[3] * op.ints[5] && width(0) == width(1) && op.ints[0] != op.ints[1]);
      break;
    }
    case OpKind::experts: {
      const int64_t count = width(2), used = op.ints[6];
      require(used >= 1 && used <= count);
      require(op.ints[0] != op.ints[1] && op.ints[0] != op.ints[2]);
      for (size_t i = 0; i < 3; ++i) require(op.ints[i] != logits_);  // whose rows have gaps between them
      const int64_t inner = weight(3).matrix.out_features;
      for (const size_t stack : {3, 4, 5}) {
        weight(stack);
        require(op.ints[stack] + count <= static_cast<int64_t>(weights_.size()));
        const Matrix& first = weight(stack).matrix;
        for (int64_t e = 0; e < count; ++e) {
          const Matrix& m = weights_[static_cast<size_t>(op.ints[stack] + e)]->matrix;
          require(m.panels && m.layout == first.layout);
          require(m.in_features == (stack == 5 ? inner : width(1)) && m.out_features == (stack == 5 ? width(0) : inner));
        }
      }
      break;
    }
    case OpKind::scale_rows: require(width(1) == 1 && op.ints[0] != op.ints[1]); width(0); break;
    case OpKind::activate: require(width(0) == width(1)); break;
    case OpKind::gate: require(width(0) == width(1) && width(0) == width(2)); break;
    case OpKind::add: require(width(0) == width(1)); break;
    case OpKind::scale:
    case OpKind::softcap: width(0); break;
  }
}

void Executor::check(const StepView& v) const {
  const int64_t vocab = widths_[static_cast<size_t>(logits_)];
  check_all("token_ids", v.token_ids, v.tokens, vocab);
  if (v.query_start[0] != 0 || v.query_start[v.sequences] != v.tokens)
    throw std::invalid_argument("query_start must begin at 0 and end at the number of tokens");
  check_all("tables", v.tables, v.sequences * v.table_width, kv_.config().num_blocks);
  for (int64_t r = 0; r < v.sequences; ++r) {
    const int32_t begin = v.query_start[r], end = v.query_start[r + 1];
    if (end < begin || end > v.tokens) out_of_range("query_start", r + 1, end, v.tokens + 1);
    check_all("positions", v.positions + begin, end - begin, v.table_width * kv_.config().block_size);
    for (int32_t t = begin + 1; t < end; ++t)
      if (v.positions[t] != v.positions[t - 1] + 1) throw std::invalid_argument("positions of a sequence are not consecutive");
  }
  for (const Op& op : body_.ops) {
    if (op.kind != OpKind::embed && op.kind != OpKind::embed_positions) continue;
    const int64_t limit = weights_[static_cast<size_t>(op.ints[1])]->rows;
    if (op.kind == OpKind::embed) check_all("token_ids", v.token_ids, v.tokens, limit);
    if (op.kind == OpKind::embed_positions) check_all("positions", v.positions, v.tokens, limit - op.ints[2]);
  }
  for (int64_t i = 0; i < v.moves_count; ++i) {
    const int32_t* move = v.moves + 3 * i;
    if (move[0] < 0 || move[0] > 2) out_of_range("moves", i, move[0], 3);
    if (move[1] < 0 || move[1] >= (move[0] == 2 ? kv_.config().tier_blocks : kv_.config().num_blocks))
      out_of_range("moves", i, move[1], kv_.config().num_blocks);
    if (move[2] < 0 || move[2] >= (move[0] == 1 ? kv_.config().tier_blocks : kv_.config().num_blocks))
      out_of_range("moves", i, move[2], kv_.config().num_blocks);
  }
  check_samples(v.samples, v.out, v.tokens, vocab);
}

void check_samples(const SampleView& s, const SampleOut& out, int64_t rows, int64_t vocab) {
  check_all("samples.index", s.index, s.count, rows);
  if (s.mask && s.mask_words != (vocab + 31) / 32)
    throw std::invalid_argument("samples.mask has rows of " + std::to_string(s.mask_words) + " words; allowed: " +
                                std::to_string((vocab + 31) / 32) + ", one bit a token");
  for (int64_t i = 0; i < s.count; ++i) {
    if (s.target[i] >= vocab) out_of_range("samples.target", i, s.target[i], vocab);
    if (s.num_logprobs[i] > out.top_width) out_of_range("samples.num_logprobs", i, s.num_logprobs[i], out.top_width + 1);
    const bool penalised = s.repetition[i] != 1.0f || s.frequency[i] != 0.0f || s.presence[i] != 0.0f;
    const bool has_history = penalised || s.history_rows > 0;
    if (s.history_row[i] < 0 || (has_history && s.history_row[i] >= s.history_rows))
      out_of_range("samples.history_row", i, s.history_row[i], s.history_rows);
    if (!penalised) continue;  // nothing else reads the history
    if (s.total_len[i] < 0 || s.total_len[i] > s.history_width)
      out_of_range("samples.total_len", i, s.total_len[i], s.history_width + 1);
    check_all("samples.history", s.history + s.history_row[i] * s.history_width, s.total_len[i], vocab);
  }
  check_ragged("samples.allowed", s.allowed_start, s.allowed_ids, s.count, vocab);
  check_ragged("samples.banned", s.banned_start, s.banned_ids, s.count, vocab);
  check_ragged("samples.bias", s.bias_start, s.bias_ids, s.count, vocab);
}

}  // namespace puna
