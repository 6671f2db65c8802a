// The tile registers, thinly: their shapes, and what vectors do for them. A tile holds 16 rows of 64 bytes.
//
// Intrinsics of tiles do not tell the compiler which memory they read: `written` says that it has to be there by now.
// Knows nothing of weights and tokens.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace puna::path_amx {

// Sums are tiles 0 to 3, left factors 4 and 5, right factors 6 and 7; sums 0 and 2 are products of 6, 1 and 3 of 7.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Right factors of `first` and `second` columns of four bytes.
  TileShapes(int64_t first, int64_t second) {
    for (int tile = 0; tile < 8; ++tile) {
      const int64_t columns = tile == 4 || tile == 5 ? 16 : tile % 2 ? second : first;
      row_bytes[tile] = static_cast<uint16_t>(4 * columns);
      rows[tile] = 16;
    }
  }
};

// Tiles have these shapes while this lives.
class Tiles {
 public:
  explicit Tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

static inline void written() { asm volatile("" ::: "memory"); }

static inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Four tiles of sums, one after the other, to memory and back.
static inline void store_sums(float* to) {
  _tile_stored(0, to, 64);
  _tile_stored(1, to + 256, 64);
  _tile_stored(2, to + 512, 64);
  _tile_stored(3, to + 768, 64);
}

static inline void load_sums(const float* from) {
  _tile_loadd(0, from, 64);
  _tile_loadd(1, from + 256, 64);
  _tile_loadd(2, from + 512, 64);
  _tile_loadd(3, from + 768, 64);
}

// Hands the columns of 16 rows of 16 values of four bytes to `use`, as vectors: four rows of each quarter meet in one
// register on their way from memory, so that half of the shuffling is done by loads. Rows begin `stride` bytes after each
// other; of those from ROWS on nothing is read.
template <int ROWS = 16, class Use>
static inline void for_columns(const void* rows, int64_t stride, Use use) {
  const uint8_t* bytes = static_cast<const uint8_t*>(rows);
#pragma GCC unroll 4
  for (int quarter = 0; quarter < 4; ++quarter) {
    const auto part = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + row * stride + 16 * quarter)); };
    __m512i v[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < 4 && i < ROWS; ++i) {
      v[i] = _mm512_castsi128_si512(part(i));
      if (ROWS > i + 4) v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x00f0, part(i + 4));
      if (ROWS > i + 8) v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x0f00, part(i + 8));
      if (ROWS > i + 12) v[i] = _mm512_mask_broadcast_i32x4(v[i], 0xf000, part(i + 12));
    }
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    use(4 * quarter, _mm512_unpacklo_epi64(a, c));
    use(4 * quarter + 1, _mm512_unpackhi_epi64(a, c));
    use(4 * quarter + 2, _mm512_unpacklo_epi64(b, d));
    use(4 * quarter + 3, _mm512_unpackhi_epi64(b, d));
  }
}

}  // namespace puna::path_amx
