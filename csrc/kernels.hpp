// What a kernel is given. Each instruction path fills one KernelTable; the executor calls through it and knows no
// instruction set. All pointers are to plain arrays; "rows" are tokens, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cache_layout.hpp"
#include "layouts.hpp"
#include "sampling_kernels.hpp"

namespace puna {

// A packed matrix [out_features, in_features]; see layouts.hpp for the bytes.
struct Matrix {
  Layout layout = Layout::float32;
  bool by_rows = false;  // codes lie as paths read them that multiply in bf16
  int64_t out_features = 0;
  int64_t in_features = 0;
  const uint8_t* panels = nullptr;
  size_t panel_bytes = 0;
  int64_t groups() const { return (in_features + GROUP - 1) / GROUP; }
  int64_t panel_count() const { return (out_features + PANEL - 1) / PANEL; }
  size_t packed_bytes() const { return panel_bytes * static_cast<size_t>(panel_count()); }
  // Whether its products take rows that were rounded before; others take float32 as it is.
  bool takes_rounded() const { return by_rows ? layout != Layout::float32 : layout > Layout::bf16; }
  // Whether they take what rounding to bf16 leaves, too: f16 has more mantissa than that.
  bool takes_rest() const { return by_rows && layout == Layout::f16; }
};

// Tokens are multiplied by tiles: a step's rows are cut into tiles of the sizes that a path likes best, of which the
// last may be filled up with rows that nobody reads. This is the tile that holds row `row` of `rows`.
struct TokenTile {
  int64_t first;  // row
  int64_t size;
};

// `most`: the largest tile but one, 12 or 4. Twelves, and sixteen where up to four would remain of them; what remains goes into
// 1, 2, 4, 8 or 12.
inline TokenTile tile_of(int64_t row, int64_t rows, int64_t most) {
  const int64_t rest = rows % most;
  if (most == 12 && rows > 12 && rest >= 1 && rest <= 4) {
    const int64_t sixteen = rows - rest - 12;
    if (row >= sixteen) return {sixteen, 16};
  }
  const int64_t first = row / most * most;
  const int64_t left = rows - first;
  return {first, left >= most ? most : left <= 1 ? 1 : left <= 2 ? 2 : left <= 4 ? 4 : left <= 8 ? 8 : most};
}

// Room for the rows of a step, those that fill up tiles included.
inline int64_t padded_rows(int64_t rows) { return (rows + 15) / 16 * 16; }

// One group of 32 inputs of one row as integers (quantize.hpp): one line of the cache. A value is scale * q, and in a wide
// group that of its fine record besides. `offset` is scale times the sum of the group's integers, `first_offset` that of the first
// sixteen. The others are what dots with codes begin with: the path's DOT_ZERO, less as many times the sum as codes of
// that centre have too much; `first` and `last` of sixteen with a centre of 32.
struct alignas(64) RoundedGroup {
  int8_t q[GROUP];
  float scale;
  float offset;
  float first_offset;
  int32_t from_8, from_16, from_128;
  int32_t first_from_32, last_from_32;
};
static_assert(sizeof(RoundedGroup) == 64);

// Rows rounded to integers. A tile's groups lie together, so that a kernel finds those of its tokens at fixed places:
// tile after tile, [groups][tokens of the tile].
struct QuantizedRows {
  RoundedGroup* groups;
  RoundedGroup* fine;  // [rows, groups], of wide groups only
  uint16_t* wide;      // [rows, groups + 1]: how many groups of the row are wide, and which
  uint16_t* bf16;  // on paths that multiply in bf16, instead of all these: [stride, groups * 32] (rounding_bf16.hpp)
  uint16_t* rest;  // what is left of each value, as bf16 again, where a matrix takes_rest; else null
  int64_t rows;
  int64_t stride;  // padded_rows(rows)
};

struct LinearArgs {
  const Matrix* matrix;
  const float* x;           // [rows, in_features], layouts of real numbers
  QuantizedRows quantized;  // where the matrix takes_rounded
  int64_t rows;
  const float* bias;  // [out_features] or null
  float* out;         // [rows, out_stride]
  int64_t out_stride;
  bool accumulate;
  int64_t first_group;  // 0; only the fault that breaks batch invariance on purpose starts elsewhere
};

// Two linears of one input and shape, and what follows them: out = activation(gate) * up, rounded to what the next linear
// reads. A panel is one group of that, so no value is ever written as float32.
struct GatedArgs {
  LinearArgs gate;  // without `out`
  LinearArgs up;    // likewise
  int kind;         // ActivationKind
  QuantizedRows out;
};

// Panels [panel, panel_end) for rows [row, row_end), which begin and end with tiles.
struct LinearPart {
  int64_t panel, panel_end;
  int64_t row, row_end;
};

// Keys that attention treats at a time, from a multiple of it on: part of what a result's bits are.
constexpr int ATTEND_RANGE = 128;

// Keys begin .. end - 1 of a sequence in one key head: what a thread will read next.
struct KeySpan {
  const int32_t* table;
  const uint8_t* head_pool;
  int begin;
  int end;
};

// Attention of the query heads of one key head, for consecutive tokens of one sequence. A row is one token and one
// head; the `group` rows of a token lie side by side, in `query` as in `out`.
struct AttendArgs {
  const float* query;  // of the first row; the next token's is query_stride further on
  float* out;          // likewise
  int64_t query_stride;
  int tokens;
  int group;     // query heads a key head
  int position;  // of the first token
  const int32_t* table;
  const uint8_t* head_pool;  // block 0 of this layer and key head; the others follow, layout.block_stride apart
  CacheLayout layout;
  float scale;
  int window;  // 0: none
  float softcap;  // 0: none
  int first_range;  // ranges first_range .. last_range - 1 of ATTEND_RANGE keys
  int last_range;
  KeySpan next;     // fetched towards the processor meanwhile; may be empty
  float* partials;  // null: all ranges are treated and merged here; else attend_partial_floats for each range
  // Of who merges, and both attend_partial_floats of `group` rows for each token. What the tokens gathered from the
  // ranges before these, or null; where to leave what they have gathered with these, or null: it goes into `out`.
  const float* before;
  float* after;
  float* scratch;   // attend_scratch_floats
};

// What one range leaves behind: weighted sums of values [rows][head_dim], and of each row the sum of weights in sixteen
// lanes, then the highest score.
constexpr int64_t attend_partial_floats(int64_t rows, int64_t head_dim) {
  return rows * (head_dim + 16) + (rows + 15) / 16 * 16;
}
constexpr int64_t attend_scratch_floats(int64_t rows, int64_t head_dim) {
  return rows * (head_dim + ATTEND_RANGE) + 2 * attend_partial_floats(rows, head_dim) + 4 * ((rows + 15) / 16 * 16) +
         ATTEND_RANGE / 2 * head_dim + 16 * (ATTEND_RANGE + head_dim + 20);
}

// Keys and values of consecutive tokens of one sequence that lie in the same sixteen slots of a block.
struct StoreArgs {
  const float* key;    // of the first token; the next token's is `stride` further on
  const float* value;  // likewise
  int64_t stride;
  int count;
  int slot;  // of the first token in its block
  uint8_t* block;
  CacheLayout layout;
};

struct KernelTable {
  const char* name;
  bool bf16;  // linears multiply in bf16: weights are packed by rows, and `quantize` writes bf16
  // A part of out = x @ matrix.T.
  void (*linear)(const LinearArgs& args, const LinearPart& part);
  // Likewise; null where the rounding of a group looks at the whole row.
  void (*gated)(const GatedArgs& args, const LinearPart& part);
  // Rows of so many inputs that stay near while panels pass by: eight times whole tiles.
  int64_t (*block_rows)(int64_t in_features);
  void (*quantize)(const float* x, int64_t width, const QuantizedRows& out, int64_t row);
  // Of fewer than `arranged_rows` rounded rows in bf16 each thread makes an arrangement for itself before it multiplies
  // them: in `out`, arrays of the same sizes.
  int64_t arranged_rows;
  void (*arrange)(const QuantizedRows& rows, int64_t groups, const QuantizedRows& out);
  void (*rms_norm)(const float* x, const float* weight, float* out, int64_t width, float eps);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* out, int64_t width, float eps);
  void (*gate)(const float* gate, const float* up, float* out, int64_t width, int kind);  // up may be null
  void (*add)(const float* x, float* out, int64_t width);
  // Rows of a tile of tokens that `attend` likes best, and whether bf16 is cached for tiles (cache_layout.hpp).
  int64_t (*attend_rows)(const CacheLayout& layout);
  bool cache_tiles;
  void (*attend)(const AttendArgs& args);
  void (*attend_merge)(const AttendArgs& args);  // the partials of all ranges, in their order, into `out` or `after`
  void (*store_cache)(const StoreArgs& args);
  // The first 2 * pairs values of each head turn, in place: (2i, 2i + 1) or, unless `interleaved`, (i, i + pairs).
  void (*rope)(float* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim, int64_t pairs, bool interleaved);
  float (*maximum)(const float* x, int64_t width);
  float (*sum_exp)(const float* x, int64_t width, float shift);  // sum of exp(x - shift)
  SamplingKernels sampling;
};

enum ActivationKind { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 };

// The paths this build holds and this processor can run, best first.
struct Paths {
  const KernelTable* tables[4];
  int count;
};
Paths available_paths();

extern const KernelTable portable_kernels;
#ifdef PUNA_X86
extern const KernelTable avx2_kernels;
extern const KernelTable avx512_kernels;
extern const KernelTable amx_kernels;
#endif

}  // namespace puna
