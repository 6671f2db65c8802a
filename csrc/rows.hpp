// Rows of a step between two operators: float32 buffers, and what a linear multiplies of them, rounded.
//
// Both only ever grow, lie on cache lines (an unaligned row would cost a second line at every load), and keep nothing
// between steps. Knows sizes, not what the numbers mean.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

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
  // Makes room for `rows` rows of `width` values.
  QuantizedRows prepare(int64_t rows, int64_t width, bool bf16) {
    const int64_t padded = padded_rows(rows), groups = (width + GROUP - 1) / GROUP;
    const size_t count = static_cast<size_t>(padded * groups);
    if (bf16) {
      bf16_.reserve(count * GROUP);
      return {nullptr, nullptr, nullptr, bf16_.data(), rows, padded};
    }
    groups_.reserve(count);
    fine_.reserve(count * GROUP);
    wide_.reserve(count);
    return {groups_.data(), fine_.data(), wide_.data(), nullptr, rows, padded};
  }

 private:
  Aligned<RoundedGroup> groups_;
  Aligned<int8_t> fine_;
  Aligned<uint8_t> wide_;
  Aligned<uint16_t> bf16_;
};

}  // namespace puna
