// Weights as the kernels read them: what each layout is made of, and its sizes.
//
// A matrix is cut into panels of 32 output rows; a panel holds its groups of 32 inputs one after the other. Integers:
//
//   codes      bits  bytes of a group                      what a code means
//   nibbles    4     512                                   code - centre, or an entry of IQ4_MEANINGS
//   fives      5     512 of low nibbles + 128 of bits      code - centre
//   sixes      6     768                                   code - centre
//   bytes      8     1024                                  code - centre
//
//   factors of a row's group                               where they lie
//   one        a scale, or a scale and a minimum, f16      before the codes: | 32 scales | 32 minimums | codes |
//   zero       a scale and, in units of it, a minimum: the   likewise
//              code that means nothing, turned
//   sub        scales (and minimums) f16 of 256 inputs,    before eight groups, as a superblock:
//              times int8 of 32 or 16 inputs                 | 32 scales f16 | 32 minimums f16 | 8 x (32 or 2 x 32 int8
//                                                            of scales, likewise of minimums) | 8 x codes |
//   float      a float32 for 16 inputs                     before the codes: | 32 of the first | 32 of the last | codes |
//              (while a product runs, of any layout: with minimums after the scales; `unpacked` in matmul.hpp)
//
//   layout   codes     factors        centre  bytes a group    layout   codes     factors             centre  bytes a group
//   q4_0     nibbles   scale          8       576              q2_k     nibbles   sub, 16, minimums           656
//   q4_1     nibbles   scale, minimum         640              q3_k     nibbles   sub, 16             4       584
//   q5_0     fives     scale          16      704              q4_k     nibbles   sub, 32, minimums           592
//   q5_1     fives     scale, minimum         768              q5_k     fives     sub, 32, minimums           720
//   q8_0     bytes     scale          128     1088             q6_k     sixes     sub, 16             32      840
//   iq4_nl   nibbles   scale          128     576              iq4_xs   nibbles   sub, 32             128     552
//   q4_z     nibbles   scale, zero            640
//   grid     bytes     float          128     1280             float32  32 inputs of 32 rows                  4096
//                                                              f16      likewise, or 32 rows of 32 inputs     2048
//                                                              bf16     likewise, or 32 rows of 32 inputs     2048
//
// Where the bits of a code lie stands in code_places.hpp: once for paths that multiply integers, once for those that
// multiply in bf16. Rows past the end, and inputs past the end, are zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace puna {

constexpr int GROUP = 32;        // values along K that share a scale
constexpr int PANEL = 32;        // output rows that are packed together
constexpr int SUPERGROUPS = 8;   // groups of a superblock

constexpr size_t HALF_GROUP_BYTES = 2 * PANEL * GROUP;  // of f16 and bf16
constexpr size_t F32_GROUP_BYTES = sizeof(float) * PANEL * GROUP;

enum class Layout { float32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, q4_z, grid };

enum class Codes { nibbles, fives, sixes, bytes };

// What the codes of IQ4_NL and IQ4_XS mean, plus 128.
constexpr uint8_t IQ4_MEANINGS[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// What an integer layout is made of.
struct Shape {
  Codes codes;
  int centre;       // taken off a code, or off its entry in IQ4_MEANINGS
  bool minimum;
  bool sub = false;   // factors are whole multiples of those of a superblock
  int runs = 1;       // factors of a row's group: 2 where sixteen inputs share one
  bool table = false;  // codes are looked up in IQ4_MEANINGS
  bool floats = false;  // factors are float32
  bool zero = false;   // the minimum is a whole multiple of the scale, and stored as that
  bool unpacked = false;  // what were factors of other kinds, while a product runs

  constexpr size_t code_bytes() const {
    return PANEL * GROUP / 2 * (codes == Codes::bytes ? 2 : 1) +
           (codes == Codes::fives ? PANEL * GROUP / 8 : codes == Codes::sixes ? PANEL * GROUP / 4 : 0);
  }
  constexpr size_t kinds() const { return minimum ? 2 : 1; }
  // Bytes of factors before the codes of a group, and before a superblock.
  constexpr size_t factor_bytes() const { return sub ? 0 : PANEL * static_cast<size_t>(runs) * kinds() * (floats ? 4 : 2); }
  constexpr size_t sub_bytes() const { return kinds() * static_cast<size_t>(runs) * PANEL; }  // int8 of one group
  constexpr size_t header_bytes() const { return sub ? kinds() * PANEL * 2 + SUPERGROUPS * sub_bytes() : 0; }
  constexpr size_t group_bytes() const { return factor_bytes() + code_bytes(); }
  // Of a panel, a group's share of headers included.
  constexpr size_t bytes_a_group() const { return group_bytes() + header_bytes() / SUPERGROUPS; }
};

// Whether packing, products and decoding are there for such a combination of parts on every path; others have to be
// written first, and would compile without being right.
constexpr bool is_built(const Shape& s) {
  if (s.runs == 2 ? !s.sub && !s.floats : s.runs != 1) return false;       // two factors are told by these only
  if (s.floats && (s.runs != 2 || s.minimum || s.sub)) return false;       // sixteen inputs a factor, no minimum
  if (s.zero && (s.codes != Codes::nibbles || !s.minimum || s.sub || s.floats)) return false;
  if (s.codes == Codes::fives && s.runs != 1) return false;
  if (s.codes == Codes::sixes && (s.minimum || s.centre != 32)) return false;
  if (s.codes == Codes::bytes && (s.minimum || s.centre != 128)) return false;
  if (s.table && (s.codes != Codes::nibbles || s.centre != 128)) return false;
  return s.centre == 0 || s.centre == 4 || s.centre == 8 || s.centre == 16 || s.centre == 32 || s.centre == 128;
}

static constexpr Shape shape_of(Layout layout) {
  switch (layout) {
    case Layout::q4_0: return {.codes = Codes::nibbles, .centre = 8, .minimum = false};
    case Layout::q4_1: return {.codes = Codes::nibbles, .centre = 0, .minimum = true};
    case Layout::q5_0: return {.codes = Codes::fives, .centre = 16, .minimum = false};
    case Layout::q5_1: return {.codes = Codes::fives, .centre = 0, .minimum = true};
    case Layout::q8_0: return {.codes = Codes::bytes, .centre = 128, .minimum = false};
    case Layout::q2_k: return {.codes = Codes::nibbles, .centre = 0, .minimum = true, .sub = true, .runs = 2};
    case Layout::q3_k: return {.codes = Codes::nibbles, .centre = 4, .minimum = false, .sub = true, .runs = 2};
    case Layout::q4_k: return {.codes = Codes::nibbles, .centre = 0, .minimum = true, .sub = true};
    case Layout::q5_k: return {.codes = Codes::fives, .centre = 0, .minimum = true, .sub = true};
    case Layout::q6_k: return {.codes = Codes::sixes, .centre = 32, .minimum = false, .sub = true, .runs = 2};
    case Layout::iq4_nl: return {.codes = Codes::nibbles, .centre = 128, .minimum = false, .table = true};
    case Layout::iq4_xs: return {.codes = Codes::nibbles, .centre = 128, .minimum = false, .sub = true, .table = true};
    case Layout::q4_z: return {.codes = Codes::nibbles, .centre = 0, .minimum = true, .zero = true};
    case Layout::grid: return {.codes = Codes::bytes, .centre = 128, .minimum = false, .runs = 2, .floats = true};
    case Layout::float32:
    case Layout::f16:
    case Layout::bf16: break;
  }
  return {.codes = Codes::bytes, .centre = 0, .minimum = false};
}

// Where a group of a panel lies: its factors and codes, and the header of its superblock.
struct GroupPlace {
  const uint8_t* group;
  const uint8_t* header;  // null where there is none
  int number;             // of the group in its superblock
};

template <Shape SHAPE>
static constexpr GroupPlace place_in(const uint8_t* panel, int64_t g) {
  constexpr int64_t BYTES = static_cast<int64_t>(SHAPE.group_bytes()), HEADER = static_cast<int64_t>(SHAPE.header_bytes());
  if constexpr (!SHAPE.sub) {
    return {panel + g * BYTES, nullptr, 0};
  } else {
    const int64_t number = g % SUPERGROUPS;
    const uint8_t* header = panel + g / SUPERGROUPS * (HEADER + SUPERGROUPS * BYTES);
    return {header + HEADER + number * BYTES, header, static_cast<int>(number)};
  }
}

template <Layout LAYOUT>
static constexpr GroupPlace place_of(const uint8_t* panel, int64_t g) {
  return place_in<shape_of(LAYOUT)>(panel, g);
}

// Calls `use` with an integer layout as a constant; with a layout of floats it is not called.
template <class Use>
static inline void with_layout(Layout layout, Use use) {
  switch (layout) {
#define PUNA_LAYOUT(name)                                                             \
  case Layout::name:                                                                  \
    static_assert(is_built(shape_of(Layout::name)), "no code for this shape: is_built"); \
    return use(std::integral_constant<Layout, Layout::name>{})
    PUNA_LAYOUT(q4_0);
    PUNA_LAYOUT(q4_1);
    PUNA_LAYOUT(q5_0);
    PUNA_LAYOUT(q5_1);
    PUNA_LAYOUT(q8_0);
    PUNA_LAYOUT(q2_k);
    PUNA_LAYOUT(q3_k);
    PUNA_LAYOUT(q4_k);
    PUNA_LAYOUT(q5_k);
    PUNA_LAYOUT(q6_k);
    PUNA_LAYOUT(iq4_nl);
    PUNA_LAYOUT(iq4_xs);
    PUNA_LAYOUT(q4_z);
    PUNA_LAYOUT(grid);
#undef PUNA_LAYOUT
    case Layout::float32:
    case Layout::f16:
    case Layout::bf16: return;
  }
}

}  // namespace puna
