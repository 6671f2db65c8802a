// Rows of a step between two operators: float32 buffers, and what a linear multiplies of them, rounded.
//
// Both only ever grow, lie on cache lines (an unaligned row would cost a second line at every load), and keep nothing
// between steps. Knows sizes, not what the numbers mean.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels.hpp"

namespace puna {

// `count` zeroed values on cache lines; growing loses what was there.
template <class T>
class Aligned {
 public:
  T* data() const { return values_.get(); }
  size_t size() const { return size_; }
  void reserve(size_t count) {
    if (count <= size_) return;
    values_.reset(new (LINE) T[count]());
    size_ = count;
  }

 private:
  static constexpr std::align_val_t LINE{64};
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, LINE); }
  };
  std::unique_ptr<T[], Free> values_;
  size_t size_ = 0;
};

using Floats = Aligned<float>;

class RoundedRows {
 public:
  explicit RoundedRows(int threads) : own_(static_cast<size_t>(threads)) {}

  // Makes room for `rows` rows of `width` values, in bf16 `rest` with what that leaves of them, and forgets those that
  // were there.
  const QuantizedRows& prepare(int64_t rows, int64_t width, bool bf16, bool rest) {
    const int64_t padded = padded_rows(rows);
    groups_ = (width + GROUP - 1) / GROUP;
    const size_t count = static_cast<size_t>(padded * groups_);
    ++version_;
    if (bf16) {
      bf16_.reserve((rest ? 2 : 1) * count * GROUP);
      return rows_ = {nullptr, nullptr, nullptr, bf16_.data(), rest ? bf16_.data() + count * GROUP : nullptr, rows, padded};
    }
    records_.reserve(count);
    fine_.reserve(count);
    wide_.reserve(count + static_cast<size_t>(padded));
    return rows_ = {records_.data(), fine_.data(), wide_.data(), nullptr, nullptr, rows, padded};
  }

  // The rows as a thread multiplies them.
  QuantizedRows for_thread(const KernelTable& kernels, int thread) {
    if (rows_.rows >= kernels.arranged_rows) return rows_;
    Own& own = own_[static_cast<size_t>(thread)];
    const size_t count = static_cast<size_t>(rows_.stride * groups_ * GROUP);
    QuantizedRows arranged = rows_;
    if (own.version != version_) own.bf16.reserve((rows_.rest ? 2 : 1) * count);
    arranged.bf16 = own.bf16.data();
    if (rows_.rest) arranged.rest = own.bf16.data() + count;
    if (own.version != version_) kernels.arrange(rows_, groups_, arranged);
    own.version = version_;
    return arranged;
  }

 private:
  // What a thread arranged, and of which rows.
  struct alignas(128) Own {
    Aligned<uint16_t> bf16;
    uint64_t version = 0;
  };

  Aligned<RoundedGroup> records_;
  Aligned<RoundedGroup> fine_;
  Aligned<uint16_t> wide_;
  Aligned<uint16_t> bf16_;
  QuantizedRows rows_{};
  int64_t groups_ = 0;
  uint64_t version_ = 0;
  std::vector<Own> own_;
};

}  // namespace puna
