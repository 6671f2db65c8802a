// The two products of attention on tiles of bf16 (TDPBF16PS), for up to sixteen rows, a strip, and a range of keys:
//
//   scores [rows][16 keys]        =  queries [rows][32 dimensions]  x  keys   [16 pairs of dimensions][16 keys][2]
//   sums   [rows][16 dimensions]  =  weights [rows][32 keys]        x  values [16 pairs of keys][16 dimensions][2]
//
// Pairs of keys lie in the order in which their weights do (attention_amx_weights.hpp). Up to four tiles of sums beside
// each other share a left factor, and a fifth adds up the weights themselves. 32 dimensions, or keys, are a step; sums take
// steps in order.
#pragma once

#include "kernels.hpp"
#include "tiles.hpp"

namespace puna::path_amx {

constexpr int STRIP = 16;
constexpr int STEP = 32;
constexpr int RANGE_STEPS = ATTEND_RANGE / STEP;
constexpr int BESIDE = 4;
constexpr int WEIGHT_ROW = 2 * ATTEND_RANGE;  // a row's weights lie where its scores lay, in the first half

// Sums and left factors of `rows` rows (tiles 0 to 4 and 5), right factors of sixteen pairs (6 and 7).
class StripTiles {
 public:
  StripTiles() = default;
  ~StripTiles() { asm volatile("tilerelease"); }
  StripTiles(const StripTiles&) = delete;
  StripTiles& operator=(const StripTiles&) = delete;
  void set(int rows) {
    if (rows == rows_) return;
    rows_ = rows;
    TileShapes shapes(16, 16);
    for (int tile = 0; tile < 6; ++tile) shapes.rows[tile] = static_cast<uint8_t>(rows);
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }

 private:
  int rows_ = 0;
};

// Right factor that adds up weights, into the first column of sixteen.
struct alignas(64) OnesTile {
  uint32_t pairs[16 * 16] = {};
  constexpr OnesTile() {
    for (int p = 0; p < 16; ++p) pairs[16 * p] = 0x3f803f80u;
  }
};
constexpr OnesTile ONES;

// What up to four tiles of sums are made of; rows and steps are so many bytes apart.
struct Product {
  const void* left;
  int64_t left_row;
  const uint8_t* right[BESIDE];
  int64_t right_row;
  int64_t right_step;
  int steps;
  int beside;
  float* out;
  int64_t out_row;
  float* totals;  // [rows][16], or null
};

// Scores of `beside` tiles of keys.
static inline Product score_product(const uint16_t* query, const uint8_t* const* keys, int beside, int dim, float* scores) {
  Product p{query, 2 * dim, {}, 4 * KEY_TILE, 2 * STEP * KEY_TILE, dim / STEP, beside, scores, 4 * ATTEND_RANGE, nullptr};
  for (int i = 0; i < beside; ++i) p.right[i] = keys[i];
  return p;
}

// Sums of up to 64 dimensions from `d` on, over keys of steps first_step .. last_step - 1. Rows of sums are `sums_row` floats
// apart.
static inline Product value_product(const float* weights, const uint16_t* values, int d, int dim, int first_step, int last_step,
                                    float* sums, int64_t sums_row, float* totals) {
  const int beside = dim - d < BESIDE * 16 ? (dim - d) / 16 : BESIDE;
  Product p{reinterpret_cast<const uint16_t*>(weights) + first_step * STEP, 2 * WEIGHT_ROW, {}, 4 * dim, 2 * STEP * dim,
            last_step - first_step, beside, sums + d, 4 * sums_row, d == 0 ? totals : nullptr};
  for (int i = 0; i < beside; ++i)
    p.right[i] = reinterpret_cast<const uint8_t*>(values + static_cast<int64_t>(first_step) * STEP * dim + 2 * d + 32 * i);
  return p;
}

static inline void multiply_step(const Product& p, int step) {
  const int64_t at = step * p.right_step;
  if (step == 0) {
    zero_sums();
    _tile_zero(4);
  }
  _tile_loadd(5, static_cast<const uint8_t*>(p.left) + 2 * STEP * step, p.left_row);
  _tile_loadd(6, p.right[0] + at, p.right_row);
  _tile_dpbf16ps(0, 5, 6);
  if (p.beside > 1) {
    _tile_loadd(7, p.right[1] + at, p.right_row);
    _tile_dpbf16ps(1, 5, 7);
  }
  if (p.beside > 2) {
    _tile_loadd(6, p.right[2] + at, p.right_row);
    _tile_dpbf16ps(2, 5, 6);
  }
  if (p.beside > 3) {
    _tile_loadd(7, p.right[3] + at, p.right_row);
    _tile_dpbf16ps(3, 5, 7);
  }
  if (p.totals) {
    _tile_loadd(6, ONES.pairs, 64);
    _tile_dpbf16ps(4, 5, 6);
  }
  if (step + 1 < p.steps) return;
  _tile_stored(0, p.out, p.out_row);
  if (p.beside > 1) _tile_stored(1, p.out + 16, p.out_row);
  if (p.beside > 2) _tile_stored(2, p.out + 32, p.out_row);
  if (p.beside > 3) _tile_stored(3, p.out + 48, p.out_row);
  if (p.totals) _tile_stored(4, p.totals, 64);
}

static inline void multiply(const Product& p) {
  for (int step = 0; step < p.steps; ++step) multiply_step(p, step);
}

// Scores of tiles first .. last - 1 where heads have 64 dimensions: a strip's queries are two left factors, which stay, and
// while the sums of one pair of tiles are stored the next pair is multiplied into others. Where a pair reaches past either
// end, what stands there is a neighbour's scores. Left factors are tiles 0 and 1, sums 2 to 5.
static inline void multiply_scores_64(const uint16_t* query, const uint8_t* const* keys, int first, int last, float* scores) {
  constexpr int64_t LEFT_ROW = 128, RIGHT_ROW = 4 * KEY_TILE, RIGHT_STEP = 2 * STEP * KEY_TILE, OUT_ROW = 4 * ATTEND_RANGE;
  const auto tile_at = [&](int i) { return keys[i < first ? first : i < last ? i : last - 1]; };
  _tile_loadd(0, query, LEFT_ROW);
  _tile_loadd(1, query + STEP, LEFT_ROW);
  for (int tile = first / 2 * 2; tile < last; tile += 4) {
    const uint8_t *a = tile_at(tile), *b = tile_at(tile + 1);
    float* out = scores + tile * KEY_TILE;
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(6, a, RIGHT_ROW);
    _tile_loadd(7, b, RIGHT_ROW);
    _tile_dpbf16ps(2, 0, 6);
    _tile_dpbf16ps(3, 0, 7);
    _tile_loadd(6, a + RIGHT_STEP, RIGHT_ROW);
    _tile_loadd(7, b + RIGHT_STEP, RIGHT_ROW);
    _tile_dpbf16ps(2, 1, 6);
    _tile_dpbf16ps(3, 1, 7);
    if (tile + 2 >= last) {
      _tile_stored(2, out, OUT_ROW);
      _tile_stored(3, out + KEY_TILE, OUT_ROW);
      break;
    }
    a = tile_at(tile + 2);
    b = tile_at(tile + 3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_loadd(6, a, RIGHT_ROW);
    _tile_loadd(7, b, RIGHT_ROW);
    _tile_dpbf16ps(4, 0, 6);
    _tile_dpbf16ps(5, 0, 7);
    _tile_stored(2, out, OUT_ROW);
    _tile_stored(3, out + KEY_TILE, OUT_ROW);
    _tile_loadd(6, a + RIGHT_STEP, RIGHT_ROW);
    _tile_loadd(7, b + RIGHT_STEP, RIGHT_ROW);
    _tile_dpbf16ps(4, 1, 6);
    _tile_dpbf16ps(5, 1, 7);
    _tile_stored(4, out + 2 * KEY_TILE, OUT_ROW);
    _tile_stored(5, out + 3 * KEY_TILE, OUT_ROW);
  }
}

}  // namespace puna::path_amx
