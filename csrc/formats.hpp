// What a packed group of integers means to the integer matmuls: how sixteen of its rows become bytes to be multiplied,
// what a dot product has too much, and how it joins a token's float sum. One struct for all layouts, made from the
// parts that layouts.hpp names; written in the words of simd.hpp, so that every path has it.
//
// Operations a group, half and token: 8 byte dots, and 4 to 6 of floats. Those on weights are shared by a tile's tokens:
// per 64 codes a shift and an and for nibbles, a shift and an or more for fives and sixes, a look-up for tables.
#pragma once

#include "kernels.hpp"
#include "layouts.hpp"
#include "panel_rows.hpp"
#include "simd.hpp"

namespace puna::PUNA_NS {

constexpr int CHUNKS = 4;  // of a half: each four of the first and four of the last sixteen inputs

static inline int32_t four_bytes(const int8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <int RUNS>
struct Factors {
  VF scale[RUNS];
  VF minimum[RUNS];
};

// Four inputs of the first and four of the last sixteen, of sixteen rows.
struct TwoChunks {
  VB low, high;
};

// Chunk C of half a group (code_places.hpp).
template <Codes CODES, int C>
static inline TwoChunks codes_of(const uint8_t* half) {
  const VB bytes = load_bytes(half + 64 * C);
  if constexpr (CODES == Codes::bytes) {
    return {bytes, load_bytes(half + 64 * (CHUNKS + C))};
  } else if constexpr (CODES == Codes::fives) {
    const VB tops = fields<C>(load_bytes(half + 64 * CHUNKS), 0x11);
    return {below<4>(bytes, tops), below<0>(shifted_nibbles(bytes), tops)};
  } else if constexpr (CODES == Codes::sixes) {
    constexpr int LEFT = C < 2 ? 4 : 0;  // chunks 0 and 2 have their bits from one mask, 1 and 3 from another
    const VB low = fields<2 * (C % 2)>(load_bytes(half + 64 * CHUNKS), 0x33);
    const VB high = fields<2 * (C % 2)>(load_bytes(half + 64 * CHUNKS + 64), 0x33);
    return {below<LEFT>(bytes, low), below<LEFT>(shifted_nibbles(bytes), high)};
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

  static inline VI dot(VI sum, VB codes, int32_t four) {
    if constexpr (SMALL) return dot_small(sum, codes, four);
    else return dot_bytes(sum, codes, four);
  }

  // What a dot of a run begins with: the centre of the codes times the token's integers comes off again.
  static inline VI start(const RoundedGroup& x, int run) {
    if constexpr (RUNS == 1) return centre_times(set1_int(x.sum));
    else if (run == 0) return centre_times(set1_int(x.first_sum));
    else return centre_times(set1_int(x.last_sum));
  }

  // The same dot of a group that the token holds wide: 128 times what it is, and that of the fine bytes. Sums of the
  // token's integers are of both already.
  static inline VI widen(VI narrow, const RoundedGroup& x, const uint8_t* codes, const int8_t* fine, int run) {
    VI more = zero_int();
    PUNA_UNROLL for (int c = 0; c < CHUNKS; ++c) {
      if (RUNS == 1 || run == 0) more = dot(more, low_chunk(codes, c), four_bytes(fine + 4 * c));
      if (RUNS == 1 || run == 1) more = dot(more, high_chunk(codes, c), four_bytes(fine + 4 * c + 16));
    }
    return add_int(start(x, run), add_int(times_128(sub_int(narrow, start(x, run))), more));
  }

  static inline Factors<RUNS> factors(const GroupPlace& place, int half) {
    Factors<RUNS> f;
    if constexpr (SHAPE.floats) {
      const float* floats = reinterpret_cast<const float*>(place.group) + LANES * half;
      PUNA_UNROLL for (int run = 0; run < RUNS; ++run) {
        f.scale[run] = load(floats + PANEL * run);
        if constexpr (SHAPE.minimum) f.minimum[run] = load(floats + PANEL * (RUNS + run));
      }
    } else if constexpr (!SHAPE.sub) {
      const uint16_t* halves = reinterpret_cast<const uint16_t*>(place.group) + LANES * half;
      f.scale[0] = load_half(halves);
      if constexpr (SHAPE.minimum) f.minimum[0] = load_half(halves + PANEL);
      if constexpr (SHAPE.zero) f.minimum[0] = mul(f.scale[0], f.minimum[0]);
    } else {
      const uint16_t* halves = reinterpret_cast<const uint16_t*>(place.header) + LANES * half;
      const uint8_t* sub = place.header + 2 * PANEL * KINDS + static_cast<size_t>(place.number) * SUB_BYTES + static_cast<size_t>(LANES * half);
      PUNA_UNROLL for (int run = 0; run < RUNS; ++run) {
        f.scale[run] = mul(load_half(halves), load_int8(sub + PANEL * run));
        if constexpr (SHAPE.minimum) f.minimum[run] = mul(load_half(halves + PANEL), load_int8(sub + PANEL * (RUNS + run)));
      }
    }
    return f;
  }

  // sum + scale * s * dot + minimum * s * (sum of the token's integers)
  static inline VF join(VF sum, const Factors<1>& f, VI dot, const RoundedGroup& x) {
    sum = fma(to_float(dot), mul(f.scale[0], set1(x.scale)), sum);
    if constexpr (SHAPE.minimum) sum = fma(f.minimum[0], set1(x.offset), sum);
    return sum;
  }

  // Likewise of two runs, whose dots meet before the token's scale.
  static inline VF times_first(const Factors<2>& f, VI dot) { return mul(to_float(dot), f.scale[0]); }
  static inline VF join(VF sum, const Factors<2>& f, VF first, VI last, const RoundedGroup& x) {
    sum = fma(fma(to_float(last), f.scale[1], first), set1(x.scale), sum);
    if constexpr (SHAPE.minimum) {
      const float offset = x.scale * -0.03125f;  // sums are -32 times what they are
      sum = fma(f.minimum[0], set1(offset * static_cast<float>(x.first_sum)), sum);
      sum = fma(f.minimum[1], set1(offset * static_cast<float>(x.last_sum)), sum);
    }
    return sum;
  }

 private:
  // Of -32 times a sum.
  static inline VI centre_times(VI sum) {
    if constexpr (SHAPE.centre == 0) return zero_int();
    else if constexpr (SHAPE.centre == 128) return shift_int<2>(sum);
    else if constexpr (SHAPE.centre == 32) return sum;
    else if constexpr (SHAPE.centre == 16) return shift_int<-1>(sum);
    else if constexpr (SHAPE.centre == 8) return shift_int<-2>(sum);
    else return shift_int<-3>(sum);
  }
  static_assert(SHAPE.centre == 0 || SHAPE.centre == 4 || SHAPE.centre == 8 || SHAPE.centre == 16 || SHAPE.centre == 32 ||
                SHAPE.centre == 128);
};

}  // namespace puna::PUNA_NS
