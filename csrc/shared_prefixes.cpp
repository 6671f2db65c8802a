#include "shared_prefixes.hpp"

#include <algorithm>
#include <cstring>

namespace puna {

namespace {

constexpr int32_t LEVELS = 4;       // the threads meet after each
constexpr int64_t LEAST_SAVED = 2;  // tiles of tokens times ranges: less costs more than it saves

}  // namespace

void SharedPrefixes::find(const StepTables& step, int block_size, int window, int32_t tile) {
  runs_.clear();
  tokens_.clear();
  order_.clear();
  depths_.clear();
  if (step.sequences < 2) return;
  step_ = step;
  block_size_ = block_size;
  whole_.resize(static_cast<size_t>(step.sequences));
  for (int32_t r = 0; r < step.sequences; ++r) {
    whole_[static_cast<size_t>(r)] = whole_ranges(r, window, tile);
    if (whole_[static_cast<size_t>(r)] > 0) order_.push_back(r);
  }
  if (order_.size() < 2) return;
  std::sort(order_.begin(), order_.end(), [this](int32_t a, int32_t b) { return comes_before(a, b); });
  alike_.clear();
  for (size_t i = 0; i + 1 < order_.size(); ++i) alike_.push_back(alike(order_[i], order_[i + 1]));
  depths_.assign(static_cast<size_t>(step.sequences), 0);
  places_.assign(static_cast<size_t>(step.sequences), -1);
  divide({0, order_.size(), 0, 0}, tile);
  std::stable_sort(runs_.begin(), runs_.end(), [](const SharedRun& a, const SharedRun& b) { return a.level < b.level; });
}

// A sequence with many new tokens fills tiles by itself.
int32_t SharedPrefixes::whole_ranges(int64_t sequence, int window, int32_t tile) const {
  const int32_t begin = step_.query_start[sequence], end = step_.query_start[sequence + 1];
  if (begin == end || end - begin >= 2 * tile) return 0;
  if (window > 0 && step_.positions[end - 1] >= window) return 0;
  return step_.positions[begin] / ATTEND_RANGE;
}

// Entries of a table that hold the first ranges.
size_t SharedPrefixes::entries(int32_t ranges) const {
  return static_cast<size_t>((static_cast<int64_t>(ranges) * ATTEND_RANGE + block_size_ - 1) / block_size_);
}

// Any order does in which tables that begin alike are neighbours; the bytes' own is the quickest to ask for.
bool SharedPrefixes::comes_before(int32_t a, int32_t b) const {
  const int32_t whole_a = whole_[static_cast<size_t>(a)], whole_b = whole_[static_cast<size_t>(b)];
  const int sign = std::memcmp(table(a), table(b), sizeof(int32_t) * entries(std::min(whole_a, whole_b)));
  if (sign != 0) return sign < 0;
  return whole_a != whole_b ? whole_a < whole_b : a < b;
}

int32_t SharedPrefixes::alike(int32_t a, int32_t b) const {
  const int32_t most = std::min(whole_[static_cast<size_t>(a)], whole_[static_cast<size_t>(b)]);
  const int32_t* const end = table(a) + entries(most);
  const int64_t blocks = std::mismatch(table(a), end, table(b)).first - table(a);
  return static_cast<int32_t>(std::min<int64_t>(most, blocks * block_size_ / ATTEND_RANGE));
}

bool SharedPrefixes::saves_tiles(const Branch& branch, int32_t ranges, int32_t tile) const {
  int64_t alone = 0, tokens = 0;
  for (size_t i = branch.begin; i < branch.end; ++i) {
    alone += (count(order_[i]) + tile - 1) / tile;
    tokens += count(order_[i]);
  }
  return (alone - (tokens + tile - 1) / tile) * ranges >= LEAST_SAVED;
}

// What all of a branch have in common becomes a run; those of them that have more in common are branches again.
void SharedPrefixes::divide(Branch branch, int32_t tile) {
  if (branch.level == LEVELS) return;
  const auto at = [&](size_t i) { return alike_.begin() + static_cast<std::ptrdiff_t>(i); };
  const int32_t common = *std::min_element(at(branch.begin), at(branch.end - 1));
  if (common > branch.depth && saves_tiles(branch, common - branch.depth, tile)) {
    const int32_t leader = order_[branch.begin];
    if (branch.level == 0)
      for (size_t i = branch.begin; i < branch.end; ++i) {
        places_[static_cast<size_t>(order_[i])] = static_cast<int32_t>(tokens_.size());
        for (int32_t t = 0; t < count(order_[i]); ++t) tokens_.push_back(step_.query_start[order_[i]] + t);
      }
    int32_t tokens = 0;
    for (size_t i = branch.begin; i < branch.end; ++i) {
      depths_[static_cast<size_t>(order_[i])] = common;
      tokens += count(order_[i]);
    }
    runs_.push_back({leader, places_[static_cast<size_t>(leader)], tokens, branch.depth, common, branch.level});
    branch.depth = common;
    ++branch.level;
  }
  for (size_t begin = branch.begin; begin < branch.end;) {
    size_t end = begin + 1;
    while (end < branch.end && alike_[end - 1] > common) ++end;
    if (end - begin > 1) divide({begin, end, branch.depth, branch.level}, tile);
    begin = end;
  }
}

}  // namespace puna
