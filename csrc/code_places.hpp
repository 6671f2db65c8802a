// Where the bits of a code lie among the codes of a group (layouts.hpp), 32 rows of 32 inputs.
//
// For paths that multiply integers (matmul.hpp) a group is two halves of 16 rows, and a lane of 4 bytes belongs to a row:
//
//   half 0: | nibbles, 4 chunks of 64 bytes | planes, if there are | half 1: ...
//   nibbles    lane r, byte j of chunk c: input 4c + j in the low and 16 + 4c + j in the high nibble
//   fives      a plane of 64 bytes: in lane r, byte j, bit c belongs to input 4c + j, bit 4 + c to input 16 + 4c + j
//   sixes      3 chunks of the first 16 inputs, 3 of the last: lane r, byte j of chunk c holds input 4c + j below two bits
//              of input 12 + j, the bits 2c and 2c + 1
//   bytes      8 chunks: lane r, byte j of chunk c is input 4c + j
//
// For paths that multiply in bf16 (decode_bf16.hpp) the 32 inputs of a row are one register, in words or in lanes:
//
//   nibbles    8 chunks of 4 rows: word i of chunk c holds input i of row 4c + j in its nibble j
//   fives      10 chunks of 3 rows: word i of chunk c holds input i of row 3c + j in bits 5j to 5j + 4; its top bit belongs
//              to row 30 (chunks 0 to 4) or 31 (5 to 9), whose highest bits come first
//   bytes      16 chunks of 2 rows: lane i of chunk c holds inputs i and 16 + i of row 2c, then the same of row 2c + 1
//   sixes      bytes as above: those of chunk 2c are the low nibbles, of 2c + 1 the high nibbles of 64 bytes; after them
//              4 planes: bits 2n and 2n + 1 of plane p's bytes belong to the bytes of chunk 4p + n
#pragma once

#include "layouts.hpp"

namespace puna {

// Bits of a code that lie together in a byte.
struct BitPlace {
  int byte;
  int shift;
};

// The low four bits of a code, or all six or eight that lie together. Fives by rows lie otherwise, see below.
template <Codes CODES, bool BY_ROWS>
constexpr BitPlace low_bits(int row, int input) {
  const int byte_chunk = row / 2, byte_at = 4 * (input % 16) + input / 16 + 2 * (row % 2);  // as bytes lie, by rows
  if constexpr (BY_ROWS) {
    if constexpr (CODES == Codes::bytes) return {64 * byte_chunk + byte_at, 0};
    if constexpr (CODES == Codes::sixes) return {64 * (byte_chunk / 2) + byte_at, 4 * (byte_chunk % 2)};
    return {64 * (row / 4) + 2 * input + row % 4 / 2, 4 * (row % 2)};
  } else {
    constexpr int HALF_BYTES = static_cast<int>(Shape{.codes = CODES, .centre = 0, .minimum = false}.code_bytes() / 2);
    const int at = HALF_BYTES * (row / 16) + 4 * (row % 16) + input % 4;
    if constexpr (CODES == Codes::bytes) return {at + 64 * (input / 4), 0};
    if constexpr (CODES == Codes::sixes) return {at + 192 * (input / 16) + 64 * (input % 16 / 4), 0};
    return {at + 64 * (input % 16 / 4), 4 * (input / 16)};
  }
}

// The bits above them, of fives and of sixes by rows.
template <Codes CODES, bool BY_ROWS>
constexpr BitPlace high_bits(int row, int input) {
  if constexpr (BY_ROWS) return {512 + 64 * (row / 8) + 4 * (input % 16) + input / 16 + 2 * (row % 2), 2 * (row % 8 / 2)};
  constexpr int HALF_BYTES = static_cast<int>(Shape{.codes = CODES, .centre = 0, .minimum = false}.code_bytes() / 2);
  return {HALF_BYTES * (row / 16) + 256 + 4 * (row % 16) + input % 4, input % 16 / 4 + 4 * (input / 16)};
}

// The byte of word `input` in a chunk that holds its bits from `bit` on.
constexpr BitPlace word_bits(int chunk, int input, int bit) { return {64 * chunk + 2 * input + bit / 8, bit % 8}; }

// Calls `each(place, bit, width)` for every run of bits that a code is made of: its bits from `bit` on, `width` of them.
template <Codes CODES, bool BY_ROWS, class Each>
inline void for_bits(int row, int input, Each each) {
  if constexpr (CODES == Codes::fives && BY_ROWS) {
    if (row < 30) {
      const int first = 5 * (row % 3), low = first == 5 ? 3 : 5;  // the middle one lies across two bytes
      each(word_bits(row / 3, input, first), 0, low);
      if (low < 5) each(word_bits(row / 3, input, 8), low, 5 - low);
    } else {
      for (int bit = 0; bit < 5; ++bit) each(word_bits(5 * (row - 30) + 4 - bit, input, 15), bit, 1);
    }
  } else if constexpr (CODES == Codes::sixes && !BY_ROWS) {
    if (input % 16 < 12) return each(low_bits<CODES, false>(row, input), 0, 6);
    for (int chunk = 0; chunk < 3; ++chunk)
      each(BitPlace{low_bits<CODES, false>(row, input - 12 + 4 * chunk).byte, 6}, 2 * chunk, 2);
  } else {
    each(low_bits<CODES, BY_ROWS>(row, input), 0, CODES == Codes::bytes ? 8 : 4);
    if constexpr (CODES == Codes::fives) each(high_bits<CODES, BY_ROWS>(row, input), 4, 1);
    if constexpr (CODES == Codes::sixes) each(high_bits<CODES, BY_ROWS>(row, input), 4, 2);
  }
}

}  // namespace puna
