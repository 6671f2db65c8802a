// What a packed group of integers means to the integer matmuls: how sixteen of its rows become bytes to be multiplied,
// what a dot product has too much, and how it joins a token's float sum. One struct for all layouts, made from the
// parts that layouts.hpp names; written in the words of simd.hpp, so that every path has it.
//
// Operations a group, half and token: 8 byte dots and 2 of floats, twice those with two runs, one more for each minimum.
// Those on weights are shared by a tile's tokens: per 64 codes a shift and an and for nibbles, a shift and an or more for
// fives and sixes, a look-up for tables.
#pragma once

#include "kernels.hpp"
#include "layouts.hpp"
#include "panel_rows.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

constexpr int CHUNKS = 4;  // of a half: each four of the first and four of the last sixteen inputs

template <int RUNS>
struct Factors {
  DotFactor scale[RUNS];
  VF minimum[RUNS];
};

// Four inputs of the first and four of the last sixteen, of sixteen rows.
struct TwoChunks {
  VB low, high;
};

// Chunk C of sixteen inputs in six bits: three lie as they are, the bits of the fourth above them.
template <int C>
static inline VB sixes_of(const uint8_t* codes) {
  if constexpr (C < 3) return fields<0>(load_bytes(codes + 64 * C), 0x3f);
  const VB low = shifted<6>(load_bytes(codes)), middle = shifted<4>(load_bytes(codes + 64));
  return fields<0>(chosen(0x0f, chosen(0x03, low, middle), shifted<2>(load_bytes(codes + 128))), 0x3f);
}

// Chunk C of half a group (code_places.hpp).
template <Codes CODES, int C>
static inline TwoChunks codes_of(const uint8_t* half) {
  if constexpr (CODES == Codes::sixes) return {sixes_of<C>(half), sixes_of<C>(half + 64 * 3)};
  const VB bytes = load_bytes(half + 64 * C);
  if constexpr (CODES == Codes::bytes) {
    return {bytes, load_bytes(half + 64 * (CHUNKS + C))};
  } else if constexpr (CODES == Codes::fives) {
    const VB tops = fields<C>(load_bytes(half + 64 * CHUNKS), 0x11);
    return {below<4>(bytes, tops), below<0>(shifted<4>(bytes), tops)};
  } else {
    return {low_nibbles(bytes), high_nibbles(bytes)};
  }
}

template <Shape SHAPE>
struct Format {
  static constexpr int RUNS = SHAPE.runs;
  static constexpr bool SMALL = SHAPE.codes != Codes::bytes && !SHAPE.table;  // codes are below 128
  static constexpr size_t FACTOR_BYTES = SHAPE.factor_bytes();
  static constexpr size_t HALF_BYTES = SHAPE.code_bytes() / 2;
  static constexpr size_t KINDS = SHAPE.kinds();
  static constexpr size_t SUB_BYTES = SHAPE.sub_bytes();
  // Whether factors have at most 22 bits: a float16 times an int8 has 18.
  static constexpr bool SHORT = !SHAPE.floats || SHAPE.unpacked;
  static constexpr int32_t ZERO = SHORT ? DOT_ZERO : 0;  // what dots are too much

  static inline const uint8_t* codes(const GroupPlace& place, int half) {
    return place.group + FACTOR_BYTES + HALF_BYTES * static_cast<size_t>(half);
  }

  static inline VB low_chunk(const uint8_t* codes, int c) { return chunk(codes, c).low; }
  static inline VB high_chunk(const uint8_t* codes, int c) { return chunk(codes, c).high; }
  static inline TwoChunks chunk(const uint8_t* codes, int c) {
    TwoChunks two;
    switch (c) {
      case 0: two = codes_of<SHAPE.codes, 0>(codes); break;
      case 1: two = codes_of<SHAPE.codes, 1>(codes); break;
      case 2: two = codes_of<SHAPE.codes, 2>(codes); break;
      default: two = codes_of<SHAPE.codes, 3>(codes);
    }
    if constexpr (SHAPE.table) two = {look_up(two.low, IQ4_MEANINGS), look_up(two.high, IQ4_MEANINGS)};
    return two;
  }

  static inline VI dot(VI sum, VB codes, const int8_t* four) {
    if constexpr (SMALL) return dot_small(sum, codes, four);
    else return dot_bytes(sum, codes, four);
  }

  // What a dot of a run begins with: ZERO, and the centre of the codes times the token's integers comes off again.
  static inline VI start(const RoundedGroup& x, int run) {
    if constexpr (SHAPE.centre == 0) {
      return set1_int(ZERO);
    } else if constexpr (RUNS == 1) {
      static_assert(SHAPE.centre == 8 || SHAPE.centre == 16 || SHAPE.centre == 128);
      return set1_int(SHAPE.centre == 8 ? x.from_8 : SHAPE.centre == 16 ? x.from_16 : x.from_128);
    } else {
      const VI from_32 = set1_int(run == 0 ? x.first_from_32 : x.last_from_32);
      static_assert(SHAPE.centre == 4 || SHAPE.centre == 32 || SHAPE.centre == 128);
      if constexpr (SHAPE.centre == 32) return from_32;
      static_assert(DOT_ZERO % 8 == 0);
      if constexpr (SHAPE.centre == 4) return add_int(shift_int<-3>(from_32), set1_int(ZERO - DOT_ZERO / 8));
      else return add_int(shift_int<2>(sub_int(from_32, set1_int(DOT_ZERO))), set1_int(ZERO));
    }
  }

  static inline Factors<RUNS> factors(const GroupPlace& place, int half) {
    Factors<RUNS> f;
    if constexpr (SHAPE.floats) {
      const float* floats = reinterpret_cast<const float*>(place.group) + LANES * half;
      PUNA_UNROLL for (int run = 0; run < RUNS; ++run) {
        f.scale[run] = dot_factor(load(floats + PANEL * run));
        if constexpr (SHAPE.minimum) f.minimum[run] = load(floats + PANEL * (RUNS + run));
      }
    } else if constexpr (!SHAPE.sub) {
      const uint16_t* halves = reinterpret_cast<const uint16_t*>(place.group) + LANES * half;
      f.scale[0] = dot_factor(load_half(halves));
      if constexpr (SHAPE.minimum) f.minimum[0] = load_half(halves + PANEL);
      if constexpr (SHAPE.zero) f.minimum[0] = mul(f.scale[0].scale, f.minimum[0]);
    } else {
      const uint16_t* halves = reinterpret_cast<const uint16_t*>(place.header) + LANES * half;
      const uint8_t* sub = place.header + 2 * PANEL * KINDS + static_cast<size_t>(place.number) * SUB_BYTES + static_cast<size_t>(LANES * half);
      PUNA_UNROLL for (int run = 0; run < RUNS; ++run) {
        f.scale[run] = dot_factor(mul(load_half(halves), load_int8(sub + PANEL * run)));
        if constexpr (SHAPE.minimum) f.minimum[run] = mul(load_half(halves + PANEL), load_int8(sub + PANEL * (RUNS + run)));
      }
    }
    return f;
  }

  // sum + scale * dot * s + minimum * (s times the sum of the token's integers): what a run adds.
  static inline VF join(VF sum, const Factors<RUNS>& f, VI dot, const RoundedGroup& x, int run) {
    if constexpr (!SHORT) return join_plain(sum, f, dot, x, run);
    return join_minimum(fma(times_dot(dot, f.scale[run]), set1(x.scale), sum), f, x, run);
  }

  // The same bits of a dot without ZERO, of any size.
  static inline VF join_plain(VF sum, const Factors<RUNS>& f, VI dot, const RoundedGroup& x, int run) {
    return join_minimum(fma(mul(to_float(dot), f.scale[run].scale), set1(x.scale), sum), f, x, run);
  }

 private:
  static inline VF join_minimum(VF sum, const Factors<RUNS>& f, const RoundedGroup& x, int run) {
    if constexpr (!SHAPE.minimum) return sum;
    else if constexpr (RUNS == 1) return fma(f.minimum[0], set1(x.offset), sum);
    else if (run == 0) return fma(f.minimum[0], set1(x.first_offset), sum);
    else return fma(f.minimum[1], sub(set1(x.offset), set1(x.first_offset)), sum);
  }
};

}  // namespace puna::PUNA_NS
