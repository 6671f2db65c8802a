// Element types of weight files: their blocks, and what 32 neighbouring inputs of a row hold.
//
// Every quantised type says the same in its own bytes: a code for each input and, for a run of 32 or of 16 of them, a
// factor and perhaps a minimum. `read_group` brings all of them to one form, which is all that packing has to know:
//
//   value = factor * meaning(code) + minimum           in float32; the product is exact
//   meaning(code) = code - centre, or IQ4_MEANINGS[code] - 128
//
// Knows nothing of panels and kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "layouts.hpp"

namespace puna {

// `grid`: float32 values of which each run of sixteen is a factor times whole numbers of at most 127. Types that no
// layout is made for are handed over so, decoded. `q4_z`: of checkpoints in 4 bits with zero points; no file has blocks of it.
enum class FileType { f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, q4_z, grid };

// Throws std::invalid_argument for a name that is not known.
FileType file_type(const std::string& name);

// Bytes of one row of `width` values, which must be whole blocks.
size_t row_bytes(FileType type, int64_t width);

// Codes and factors of 32 inputs. A factor of a run is scale (float16) * scales, a minimum likewise, or where a shape has
// zeros, minimum * scale; of a grid it is `factors`.
struct WeightGroup {
  uint8_t codes[GROUP] = {};
  uint16_t scale = 0;
  uint16_t minimum = 0;
  int8_t scales[2] = {1, 1};  // of the first and of the last sixteen inputs; 1 where a type has none
  int8_t minimums[2] = {1, 1};
  float factors[2] = {};
};

// The layout of integers that a type has; float32 for types that are not quantised.
Layout layout_of(FileType type);

// Group `g` of a row of a quantised type.
WeightGroup read_group(FileType type, const uint8_t* row, int64_t g);

// The 32 values of a group.
void decode_group(Layout layout, const WeightGroup& group, float* out);

// Decodes one row exactly.
void decode_row(FileType type, const uint8_t* data, int64_t width, float* out);

}  // namespace puna
