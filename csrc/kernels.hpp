// What a kernel is given. Each instruction path fills one KernelTable; the executor calls through it and knows no
// instruction set. All pointers are to plain arrays; "rows" are tokens, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sampling_kernels.hpp"

namespace puna {

constexpr int GROUP = 32;  // values along K that share a scale
constexpr int PANEL = 32;  // output rows that are packed together

enum class Layout { float32, q4, q8 };

// A packed matrix [out_features, in_features]; see packing.hpp for the bytes.
struct Matrix {
  Layout layout = Layout::float32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  const uint8_t* panels = nullptr;
  size_t panel_bytes = 0;
  int64_t groups() const { return (in_features + GROUP - 1) / GROUP; }
  int64_t panel_count() const { return (out_features + PANEL - 1) / PANEL; }
  size_t packed_bytes() const { return panel_bytes * static_cast<size_t>(panel_count()); }
};

// Rows rounded to integers in groups of 32 (quantize.hpp). A group's value is scale * q or, where `wide` is set,
// scale * (128 * q + fine). `sum` is the sum of a group's integers, q or 128 * q + fine.
struct QuantizedRows {
  int8_t* q;       // [rows, groups * 32]
  int8_t* fine;    // [rows, groups * 32], of wide groups only
  float* scale;    // [rows, groups]
  int32_t* sum;    // [rows, groups]
  uint8_t* wide;   // [rows, groups]
};

struct LinearArgs {
  const Matrix* matrix;
  const float* x;           // [rows, in_features], float32 layout
  QuantizedRows quantized;  // integer layouts
  int64_t rows;
  const float* bias;  // [out_features] or null
  float* out;         // [rows, out_features]
  bool accumulate;
  int64_t first_group;  // 0; only the fault that breaks batch invariance on purpose starts elsewhere
};

enum class CacheType { f32, bf16, f16 };

// Attention of the query heads of one key head, for a run of consecutive tokens of one sequence.
struct AttendArgs {
  const float* query;  // [rows, query_stride]: this key head's first query head
  float* out;          // likewise
  int64_t query_stride;
  const int32_t* positions;  // [rows]
  int64_t rows;
  const int32_t* table;
  const uint8_t* head_pool;  // blocks of this layer and key head, one after the other
  size_t block_bytes;        // keys and values of one block and head
  int block_size;
  int group;  // query heads a key head
  int head_dim;
  CacheType cache;
  float scale;
  int window;
  float softcap;
  float* scratch;  // group * head_dim floats and group * 16 more
};

struct KernelTable {
  const char* name;
  // Panels [first, last) of out = x @ matrix.T.
  void (*linear)(const LinearArgs& args, int64_t first, int64_t last);
  void (*quantize)(const float* x, int64_t width, const QuantizedRows& out, int64_t row);
  void (*rms_norm)(const float* x, const float* weight, float* out, int64_t width, float eps);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* out, int64_t width, float eps);
  void (*gate)(const float* gate, const float* up, float* out, int64_t width, int kind);  // up may be null
  void (*add)(const float* x, float* out, int64_t width);
  void (*attend)(const AttendArgs& args);
  void (*to_half)(const float* x, uint16_t* out, int64_t width);
  float (*maximum)(const float* x, int64_t width);
  float (*sum_exp)(const float* x, int64_t width, float shift);  // sum of exp(x - shift)
  SamplingKernels sampling;
};

enum ActivationKind { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 };

// The paths this build holds and this processor can run, best first.
struct Paths {
  const KernelTable* tables[3];
  int count;
};
Paths available_paths();

extern const KernelTable portable_kernels;
#ifdef PUNA_X86
extern const KernelTable avx2_kernels;
extern const KernelTable avx512_kernels;
#endif

}  // namespace puna
