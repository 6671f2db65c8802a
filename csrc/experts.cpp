#include "experts.hpp"

#include <algorithm>

#include "routing.hpp"

namespace puna {

namespace {

// As in puna/engine/memory.py, which counts this among the working space.
constexpr int64_t SCRATCH_BYTES = int64_t{64} << 20;
constexpr int64_t ROW_GRAIN = 2;
constexpr int64_t RUNS_A_THREAD = 16;  // items of a group of many rows take longer than those of one
constexpr int64_t COLUMNS = 64;        // of a token's sum, which stay in registers or near them

int64_t groups_of(int64_t width) { return (width + GROUP - 1) / GROUP; }

// What one row of a group takes in memory: as it is, between the matrices, as a result, and rounded.
int64_t scratch_row_bytes(int64_t in, int64_t width, int64_t out) {
  constexpr int64_t ROUNDED = std::max<int64_t>(sizeof(RoundedGroup) + GROUP + 1, 2 * sizeof(uint16_t) * GROUP);
  return 4 * (in + 2 * width + out) + groups_of(std::max(in, width)) * ROUNDED;
}

}  // namespace

struct ExpertsStep::Block {
  const KernelTable& kernels;
  ThreadPool& pool;
  const ExpertsArgs& args;
  int64_t tokens;
  const float* x;
  const float* scores;
  float* out;
  const Matrix& gate() const { return args.matrices->gate[0]; }
  const Matrix& up() const { return args.matrices->up[0]; }
  const Matrix& down() const { return args.matrices->down[0]; }
  int64_t experts() const { return static_cast<int64_t>(args.matrices->gate.size()); }
  int64_t rows() const { return tokens * args.used; }  // of all groups
};

ExpertsStep::ExpertsStep(int threads) : own_(static_cast<size_t>(threads)) {}

void ExpertsStep::run(const KernelTable& kernels, ThreadPool& pool, const ExpertsArgs& args) {
  const ExpertMatrices& m = *args.matrices;
  const int64_t in = m.gate[0].in_features, width = m.gate[0].out_features, out = m.down[0].out_features;
  const int64_t most = std::max<int64_t>(1, SCRATCH_BYTES / (args.used * scratch_row_bytes(in, width, out)));
  const int64_t blocks = (args.rows + most - 1) / most;
  bytes_read_ = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = args.rows * b / blocks, last = args.rows * (b + 1) / blocks;
    const Block block{kernels, pool, args, last - first, args.x + first * in,
                      args.scores + first * static_cast<int64_t>(m.gate.size()), args.out + first * out};
    choose(block);
    gather(block);
    gate_and_up(block);
    down(block);
    combine(block);
  }
}

size_t ExpertsStep::scratch_bytes() const {
  return sizeof(float) * (gathered_.size() + gate_.size() + up_.size() + down_.size()) +
         sizeof(RoundedGroup) * (records_.size() + fine_.size()) + sizeof(uint16_t) * (wide_.size() + bf16_.size());
}

// Routes every token, then sorts tokens by expert: within a group they keep their order.
void ExpertsStep::choose(const Block& block) {
  const ExpertsArgs& args = block.args;
  const size_t rows = static_cast<size_t>(block.rows());
  chosen_.resize(rows);
  shares_.resize(rows);
  places_.resize(rows);
  tokens_.resize(rows);
  block.pool.run(block.tokens, ROW_GRAIN, [&](int64_t first, int64_t last, int thread) {
    std::vector<double>& powers = own_[static_cast<size_t>(thread)].powers;
    powers.resize(static_cast<size_t>(block.experts()));
    for (int64_t t = first; t < last; ++t)
      route(block.scores + t * block.experts(), block.experts(), args.used, args.normalised, args.scale, powers.data(),
            chosen_.data() + t * args.used, shares_.data() + t * args.used);
  });
  counts_.assign(static_cast<size_t>(block.experts()), 0);
  for (const int32_t expert : chosen_) ++counts_[static_cast<size_t>(expert)];
  groups_.clear();
  sixteens_.clear();
  int64_t first = 0, padded = 0;
  for (size_t e = 0; e < counts_.size(); ++e) {
    const int64_t count = counts_[e];
    counts_[e] = first;  // from here on where the expert's next row goes
    if (count == 0) continue;
    for (int64_t row = 0; row < count; row += 16) sixteens_.push_back({groups_.size(), row, std::min<int64_t>(16, count - row)});
    groups_.push_back({static_cast<int32_t>(e), first, count, padded});
    bytes_read_ += static_cast<int64_t>(args.matrices->gate[e].packed_bytes() + args.matrices->up[e].packed_bytes() +
                                        args.matrices->down[e].packed_bytes());
    first += count;
    padded += padded_rows(count);
  }
  for (size_t i = 0; i < rows; ++i) {
    const int64_t place = counts_[static_cast<size_t>(chosen_[i])]++;
    places_[i] = place;
    tokens_[static_cast<size_t>(place)] = static_cast<int64_t>(i) / args.used;
  }
}

// Inputs of all groups, rounded or as they are, whichever their matrices read.
void ExpertsStep::gather(const Block& block) {
  const int64_t in = block.gate().in_features;
  const auto row_of = [&](int64_t row) { return block.x + tokens_[static_cast<size_t>(row)] * in; };
  const bool gate_rounded = block.gate().takes_rounded(), up_rounded = block.up().takes_rounded();
  if (gate_rounded || up_rounded) round(block, in, block.gate().takes_rest() || block.up().takes_rest(), row_of);
  if (gate_rounded && up_rounded) return;
  gathered_.reserve(static_cast<size_t>(block.rows() * in));
  block.pool.run(block.rows(), ROW_GRAIN, [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) std::copy_n(row_of(row), in, gathered_.data() + row * in);
  });
}

// Few rows in bf16 are arranged here, once for all threads: a group is small, and read by many.
template <class RowOf>
void ExpertsStep::round(const Block& block, int64_t width, bool rest, RowOf row_of) {
  const KernelTable& kernels = block.kernels;
  const int64_t groups = groups_of(width);
  const Group& last_group = groups_.back();
  const size_t rows = static_cast<size_t>(last_group.padded + padded_rows(last_group.rows)), count = rows * static_cast<size_t>(groups);
  if (kernels.bf16) {
    bf16_.reserve((rest ? 2 : 1) * count * GROUP);
    rest_ = rest ? bf16_.data() + count * GROUP : nullptr;
  } else {
    records_.reserve(count);
    fine_.reserve(count);
    wide_.reserve(count + rows);
  }
  block.pool.run(static_cast<int64_t>(sixteens_.size()), 1, [&](int64_t first, int64_t last, int thread) {
    for (; first < last; ++first) {
      const Sixteen& part = sixteens_[static_cast<size_t>(first)];
      const Group& group = groups_[part.group];
      QuantizedRows rounded = rounded_rows(group, groups);
      int64_t row = part.row;
      const bool arranged = group.rows < kernels.arranged_rows;
      if (arranged) {
        Aligned<uint16_t>& own = own_[static_cast<size_t>(thread)].rounded;
        own.reserve(static_cast<size_t>(2 * 16 * groups * GROUP));
        rounded = {nullptr, nullptr, nullptr, own.data(), rest ? own.data() + 16 * groups * GROUP : nullptr, part.rows, 16};
        row = 0;
      }
      for (int64_t i = 0; i < part.rows; ++i)
        kernels.quantize(row_of(group.first + part.row + i), width, rounded, row + i);
      if (!arranged) continue;
      QuantizedRows out = rounded_rows(group, groups);
      out.bf16 += part.row * groups * GROUP;
      if (rest) out.rest += part.row * groups * GROUP;
      kernels.arrange(rounded, groups, out);
    }
  });
}

QuantizedRows ExpertsStep::rounded_rows(const Group& group, int64_t groups) const {
  const int64_t at = group.padded * groups, stride = padded_rows(group.rows);
  if (bf16_.size()) return {nullptr, nullptr, nullptr, bf16_.data() + at * GROUP, rest_ ? rest_ + at * GROUP : nullptr, group.rows, stride};
  return {records_.data() + at, fine_.data() + at, wide_.data() + at + group.padded, nullptr, nullptr, group.rows, stride};
}

// Items are panels, of block after block of a group's rows, of group after group: many experts with a row each in
// decoding, few with many rows in prefill.
template <class Body>
void ExpertsStep::run_panels(const Block& block, const Matrix& matrix, Body body) {
  const int64_t rows = block.kernels.block_rows(matrix.in_features), panels = matrix.panel_count();
  const auto blocks_of = [&](const Group& group) { return std::max<int64_t>(1, group.rows / rows); };  // the last holds the rest
  int64_t items = 0;
  starts_.clear();
  for (const Group& group : groups_) {
    starts_.push_back(items);
    items += panels * blocks_of(group);
  }
  const int64_t grain = std::max<int64_t>(1, items / (block.pool.threads() * RUNS_A_THREAD));
  block.pool.run(items, grain, [&](int64_t first, int64_t last, int) {
    while (first < last) {
      const size_t g = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin()) - 1;
      const Group& group = groups_[g];
      const int64_t b = (first - starts_[g]) / panels, panel = (first - starts_[g]) % panels;
      const int64_t row_end = b + 1 == blocks_of(group) ? group.rows : (b + 1) * rows;
      const LinearPart part{panel, std::min(panels, panel + last - first), b * rows, row_end};
      body(group, part);
      first += part.panel_end - part.panel;
    }
  });
}

void ExpertsStep::multiply(const Block& block, const Group& group, const Matrix& matrix, const LinearPart& part,
                           const float* x, float* out) {
  LinearArgs args{};
  args.matrix = &matrix;
  if (matrix.takes_rounded()) args.quantized = rounded_rows(group, matrix.groups());
  else args.x = x + group.first * matrix.in_features;
  args.rows = group.rows;
  args.out = out + group.first * matrix.out_features;
  args.out_stride = matrix.out_features;
  args.first_group = block.args.broken_order ? group.rows % matrix.groups() : 0;
  block.kernels.linear(args, part);
}

// The activation follows while both products are near.
void ExpertsStep::gate_and_up(const Block& block) {
  const int64_t width = block.gate().out_features;
  gate_.reserve(static_cast<size_t>(block.rows() * width));
  up_.reserve(static_cast<size_t>(block.rows() * width));
  run_panels(block, block.gate(), [&](const Group& group, const LinearPart& part) {
    const size_t e = static_cast<size_t>(group.expert);
    multiply(block, group, block.args.matrices->gate[e], part, gathered_.data(), gate_.data());
    multiply(block, group, block.args.matrices->up[e], part, gathered_.data(), up_.data());
    const int64_t column = part.panel * PANEL, columns = std::min(width, part.panel_end * PANEL) - column;
    for (int64_t row = group.first + part.row; row < group.first + part.row_end; ++row) {
      float* gate = gate_.data() + row * width + column;
      block.kernels.gate(gate, up_.data() + row * width + column, gate, columns, block.args.kind);
    }
  });
}

void ExpertsStep::down(const Block& block) {
  const int64_t width = block.down().in_features;
  if (block.down().takes_rounded()) round(block, width, block.down().takes_rest(), [&](int64_t row) { return gate_.data() + row * width; });
  down_.reserve(static_cast<size_t>(block.rows() * block.down().out_features));
  run_panels(block, block.down(), [&](const Group& group, const LinearPart& part) {
    multiply(block, group, block.args.matrices->down[static_cast<size_t>(group.expert)], part, gate_.data(), down_.data());
  });
}

void ExpertsStep::combine(const Block& block) {
  const int64_t width = block.down().out_features, used = block.args.used;
  block.pool.run(block.tokens, ROW_GRAIN, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      float* out = block.out + t * width;
      for (int64_t column = 0; column < width; column += COLUMNS) {
        const int64_t columns = std::min(COLUMNS, width - column);
        float sums[COLUMNS] = {};
        for (int64_t s = 0; s < used; ++s) {
          const float share = shares_[static_cast<size_t>(t * used + s)];
          const float* result = down_.data() + places_[static_cast<size_t>(t * used + s)] * width + column;
          for (int64_t i = 0; i < columns; ++i) sums[i] += share * result[i];
        }
        for (int64_t i = 0; i < columns; ++i) out[column + i] = block.args.accumulate ? out[column + i] + sums[i] : sums[i];
      }
    }
  });
}

}  // namespace puna
