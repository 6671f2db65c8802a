// Groups of packed weights decoded to bf16: 32 output rows of 32 inputs, 64 bytes a row: two tiles of matmul_amx.hpp.
//
// A value is scale * q + minimum in float32, rounded to nearest even. Of four or five bits a row's group knows sixteen or
// 32 values: they are computed and rounded once, for one or two rows in a register, and looked up by the codes. Of six
// and eight bits each value is computed: a code in the mantissa of a power of two is that power plus the code, and scale
// times the power comes off again exactly. Bytes and operations a group: q4_1 reads 640 bytes and writes 2 KiB with
// about 5 instructions a row; fives take 6, sixes 10, bytes 8, f16 14.
#pragma once

#include <immintrin.h>

#include "kernels.hpp"
#include "layouts.hpp"

namespace puna::path_amx {

constexpr int64_t TILE_BYTES = 1024;               // 16 rows of 64 bytes
constexpr int64_t DECODED_BYTES = 2 * TILE_BYTES;  // a group of a panel, or a part of it

// Factors of a group's rows, those of the last sixteen inputs apart where they have their own. They are read back from
// memory, one by one into all lanes, which costs the ports that compute nothing; a compiler that sees through to the
// registers would shuffle instead.
struct alignas(64) RowFactors {
  float scale[2 * PANEL];
  float minimum[2 * PANEL];
  const RowFactors* from_memory() const {
    const RowFactors* p = this;
    asm volatile("" : "+r"(p)::"memory");
    return p;
  }
};

static inline __m512 sixteen_halves(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

static inline __m512 sixteen_bytes(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

static inline __m512i bf16_of(__m512 low, __m512 high) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

// Bits of `a` where those of `mask` are set, else of `b`.
static inline __m512i select_bits(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }

static inline __m512i shift_words(__m512i words, int left) {
  return left >= 0 ? _mm512_slli_epi16(words, static_cast<unsigned>(left)) : _mm512_srli_epi16(words, static_cast<unsigned>(-left));
}

// How a group of a layout becomes 32 rows of 64 bytes. `decode` returns where they lie: in `out`, or where they lay
// already. `panel`: of which group `g` is wanted.
template <Layout LAYOUT>
struct Rows {
  static constexpr Shape SHAPE = shape_of(LAYOUT);
  static constexpr int64_t BYTES = static_cast<int64_t>(SHAPE.bytes_a_group());  // of a panel, for each group
  static constexpr int64_t PARTS = 1;  // decoded groups, one after the other, whose sum are the weights
  static constexpr size_t FACTOR_BYTES = SHAPE.factor_bytes();
  static constexpr size_t KINDS = SHAPE.kinds();
  static constexpr size_t SUB_BYTES = SHAPE.sub_bytes();

  // Of the superblock that was decoded last: its factors, as floats.
  struct Header {
    const uint8_t* of = nullptr;
    alignas(64) float factors[KINDS * PANEL];
  };

  static inline const uint8_t* decode(const uint8_t* panel, int64_t g, uint8_t* out, Header& header) {
    const GroupPlace place = place_of<LAYOUT>(panel, g);
    RowFactors f;
    load_factors(place, f, header);
    const RowFactors* factors = f.from_memory();
    const uint8_t* codes = place.group + FACTOR_BYTES;
    if constexpr (SHAPE.codes == Codes::nibbles && SHAPE.runs == 1) nibbles(codes, factors, out);
    else if constexpr (SHAPE.codes == Codes::nibbles) nibbles_of_sixteen(codes, factors, out);
    else if constexpr (SHAPE.codes == Codes::fives) fives(codes, factors, out);
    else computed(codes, factors, out);
    return out;
  }

 private:
  static inline void load_factors(const GroupPlace& place, RowFactors& f, Header& header) {
    if constexpr (SHAPE.sub) {
      if (header.of != place.header) {
        for (size_t at = 0; at < KINDS * PANEL; at += 16)
          _mm512_store_ps(header.factors + at, sixteen_halves(place.header + 2 * at));
        header.of = place.header;
      }
    }
    const auto keep = [&](int at, __m512 scale, __m512 minimum) {
      _mm512_store_ps(f.scale + at, scale);
      if constexpr (SHAPE.codes == Codes::bytes) minimum = _mm512_mul_ps(scale, _mm512_set1_ps(-32896.0f));  // 2^15 + 128
      if constexpr (SHAPE.codes == Codes::sixes) minimum = _mm512_mul_ps(scale, _mm512_set1_ps(-160.0f));    // 2^7 + 32
      _mm512_store_ps(f.minimum + at, minimum);
    };
    for (int half = 0; half < 2; ++half) {
      if constexpr (SHAPE.floats) {
        for (int run = 0; run < 2; ++run)
          _mm512_store_ps(f.scale + PANEL * run + 16 * half, _mm512_loadu_ps(place.group + 4 * (PANEL * run + 16 * half)));
        continue;
      }
      const auto factor = [&](size_t kind) {
        const size_t at = kind * PANEL + 16 * static_cast<size_t>(half);
        return SHAPE.sub ? _mm512_load_ps(header.factors + at) : sixteen_halves(place.group + 2 * at);
      };
      const __m512 scale = factor(0);
      const __m512 minimum = SHAPE.minimum ? factor(1) : _mm512_setzero_ps();
      if constexpr (!SHAPE.sub) {
        keep(16 * half, scale, SHAPE.zero ? _mm512_mul_ps(scale, minimum) : minimum);
      } else {
        const uint8_t* sub = place.header + 2 * PANEL * KINDS + static_cast<size_t>(place.number) * SUB_BYTES + 16 * half;
        for (int run = 0; run < SHAPE.runs; ++run) {
          const __m512 least = SHAPE.minimum ? _mm512_mul_ps(minimum, sixteen_bytes(sub + PANEL * (SHAPE.runs + run))) : minimum;
          keep(PANEL * run + 16 * half, _mm512_mul_ps(scale, sixteen_bytes(sub + PANEL * run)), least);
        }
      }
    }
  }

  // What sixteen codes from `first` on mean.
  static inline __m512 meanings(int first) {
    alignas(64) float q[16];
    for (int i = 0; i < 16; ++i) q[i] = static_cast<float>((SHAPE.table ? IQ4_MEANINGS[i] : first + i) - SHAPE.centre);
    return _mm512_load_ps(q);
  }

  static inline __m512 values(__m512 q, const RowFactors* f, int at) {
    if constexpr (SHAPE.minimum) return _mm512_fmadd_ps(q, _mm512_set1_ps(f->scale[at]), _mm512_set1_ps(f->minimum[at]));
    else return _mm512_mul_ps(q, _mm512_set1_ps(f->scale[at]));
  }

  // Two rows share a table: the second one's sixteen values begin at 16.
  static inline void nibbles(const uint8_t* codes, const RowFactors* f, uint8_t* out) {
    const __m512 q = meanings(0);
    const __m512i low = _mm512_set1_epi16(0x0f0f);
    const __m512i second = _mm512_set1_epi16(0x1010);
#pragma GCC unroll 8
    for (int row = 0; row < PANEL; row += 4) {
      const __m512i words = _mm512_loadu_si512(codes + 16 * row);
      const __m512i even = _mm512_and_si512(words, low);
      const __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 4), low, second, 0xea);  // (a & b) | c
      const __m512i first_two = bf16_of(values(q, f, row), values(q, f, row + 1));
      const __m512i last_two = bf16_of(values(q, f, row + 2), values(q, f, row + 3));
      uint8_t* to = out + 64 * row;
      _mm512_store_si512(to, _mm512_permutexvar_epi16(even, first_two));
      _mm512_store_si512(to + 64, _mm512_permutexvar_epi16(odd, first_two));
      _mm512_store_si512(to + 128, _mm512_permutexvar_epi16(_mm512_srli_epi16(even, 8), last_two));
      _mm512_store_si512(to + 192, _mm512_permutexvar_epi16(_mm512_srli_epi16(odd, 8), last_two));
    }
  }

  // The first and the last sixteen inputs of a row share a table.
  static inline void nibbles_of_sixteen(const uint8_t* codes, const RowFactors* f, uint8_t* out) {
    const __m512 q = meanings(0);
    const __m512i low = _mm512_set1_epi16(0x000f);
    const __m512i last = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(0x0010), 1);
#pragma GCC unroll 32
    for (int row = 0; row < PANEL; ++row) {
      const __m512i words = shift_words(_mm512_loadu_si512(codes + 64 * (row / 4)), -4 * (row % 4));
      const __m512i index = _mm512_ternarylogic_epi32(words, low, last, 0xea);  // (a & b) | c
      const __m512i table = bf16_of(values(q, f, row), values(q, f, PANEL + row));
      _mm512_store_si512(out + 64 * row, _mm512_permutexvar_epi16(index, table));
    }
  }

  // A row is a table; bits above the fifth are not looked at. The last two rows' bits top five words each.
  static inline void fives(const uint8_t* codes, const RowFactors* f, uint8_t* out) {
    const __m512 q = meanings(0), above = meanings(16);
    const auto keep = [&](int row, __m512i index) {
      const __m512i table = bf16_of(values(q, f, row), values(above, f, row));
      _mm512_store_si512(out + 64 * row, _mm512_permutexvar_epi16(index, table));
    };
    __m512i last[2] = {};
#pragma GCC unroll 10
    for (int chunk = 0; chunk < 10; ++chunk) {
      const __m512i words = _mm512_loadu_si512(codes + 64 * chunk);
      keep(3 * chunk, words);
      keep(3 * chunk + 1, _mm512_srli_epi16(words, 5));
      keep(3 * chunk + 2, _mm512_srli_epi16(words, 10));
      __m512i& bits = last[chunk / 5];
      bits = chunk % 5 == 0 ? _mm512_srli_epi16(words, 15) : _mm512_shldi_epi16(bits, words, 1);
    }
    keep(30, last[0]);
    keep(31, last[1]);
  }

  // Byte BYTE of each lane, a code, as a float: it becomes a byte of the mantissa below an exponent.
  template <int BYTE>
  static inline __m512 valued(__m512i codes, const RowFactors* f, int at) {
    constexpr bool SIX = SHAPE.codes == Codes::sixes;
    constexpr int TO = SIX ? 2 : 1;
    const __m512i power = _mm512_set1_epi32(SIX ? 0x43000000 : 0x47000000);  // 2^7, 2^15
    __m512i lanes;
    if constexpr (BYTE == TO) {
      lanes = _mm512_ternarylogic_epi32(codes, _mm512_set1_epi32(0xff << 8 * TO), power, 0xea);  // (a & b) | c
    } else {
      const __m512i from = _mm512_set4_epi32(0x0c0c0c0c + BYTE * 0x01010101, 0x08080808 + BYTE * 0x01010101,
                                             0x04040404 + BYTE * 0x01010101, BYTE * 0x01010101);
      lanes = _mm512_mask_shuffle_epi8(power, 0x1111111111111111ull << TO, codes, from);
    }
    const __m512 q = _mm512_castsi512_ps(lanes);
    if constexpr (SHAPE.floats) return _mm512_mul_ps(_mm512_sub_ps(q, _mm512_set1_ps(32896.0f)), _mm512_set1_ps(f->scale[at]));
    return _mm512_fmadd_ps(q, _mm512_set1_ps(f->scale[at]), _mm512_set1_ps(f->minimum[at]));
  }

  // Two rows a register: bytes 0 and 1 of a lane belong to the first one.
  static inline void computed(const uint8_t* codes, const RowFactors* f, uint8_t* out) {
    constexpr int LAST = SHAPE.runs == 2 ? PANEL : 0;
#pragma GCC unroll 16
    for (int row = 0; row < PANEL; row += 2) {
      __m512i bytes;
      if constexpr (SHAPE.codes == Codes::sixes) {
        const __m512i low = shift_words(_mm512_loadu_si512(codes + 64 * (row / 4)), -4 * (row / 2 % 2));
        const __m512i high = shift_words(_mm512_loadu_si512(codes + 512 + 64 * (row / 8)), 4 - 2 * (row / 2 % 4));
        bytes = _mm512_and_si512(select_bits(_mm512_set1_epi8(15), low, high), _mm512_set1_epi8(63));
      } else {
        bytes = _mm512_loadu_si512(codes + 32 * row);
      }
      const __m512 a = valued<0>(bytes, f, row), b = valued<1>(bytes, f, LAST + row);
      const __m512 c = valued<2>(bytes, f, row + 1), d = valued<3>(bytes, f, LAST + row + 1);
      _mm512_store_si512(out + 64 * row, bf16_of(a, b));
      _mm512_store_si512(out + 64 * row + 64, bf16_of(c, d));
    }
  }
};

// Halves lie as they are wanted.
template <>
struct Rows<Layout::bf16> {
  static constexpr int64_t BYTES = HALF_GROUP_BYTES, PARTS = 1;
  struct Header {};
  static inline const uint8_t* decode(const uint8_t* panel, int64_t g, uint8_t*, Header&) { return panel + g * BYTES; }
};

// An f16 is a bf16, its upper bits, and another one, what is left of it: of 11 bits 8 and 3. Both are exact, of subnormal
// f16 too, which float32 has as normal numbers. A row lies as its even and its odd inputs, for those meet in a lane. What
// comes next is fetched row by row: 32 lines at once took 233 ns a group of one token where this takes 145.
template <>
struct Rows<Layout::f16> {
  static constexpr int64_t BYTES = HALF_GROUP_BYTES, PARTS = 2;

  struct Header {};
  static inline const uint8_t* decode(const uint8_t* panel, int64_t g, uint8_t* out, Header&) {
    const uint8_t* group = panel + g * BYTES;
#pragma GCC unroll 8
    for (int row = 0; row < PANEL; ++row) {
      _mm_prefetch(reinterpret_cast<const char*>(group + 64 * row + AHEAD), _MM_HINT_T0);
      const __m512 even = sixteen_halves(group + 64 * row), odd = sixteen_halves(group + 64 * row + 32);
      const __m512 even_top = top_of(even), odd_top = top_of(odd);
      _mm512_store_si512(out + 64 * row, side_by_side(even_top, odd_top));
      _mm512_store_si512(out + DECODED_BYTES + 64 * row, side_by_side(_mm512_sub_ps(even, even_top), _mm512_sub_ps(odd, odd_top)));
    }
    return out;
  }

 private:
  static inline __m512 top_of(__m512 x) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static constexpr int64_t AHEAD = 1024;  // bytes
  // Of values that are bf16.
  static inline __m512i side_by_side(__m512 even, __m512 odd) {
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
  }
};

// Calls `use` with the format of a matrix that is packed by rows.
template <class Use>
static inline void with_format(const Matrix& matrix, Use use) {
  if (matrix.layout == Layout::bf16) return use(Rows<Layout::bf16>{});
  if (matrix.layout == Layout::f16) return use(Rows<Layout::f16>{});
  with_layout(matrix.layout, [&](auto layout) { use(Rows<layout()>{}); });
}

}  // namespace puna::path_amx
