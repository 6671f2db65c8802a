// Weights as the kernels read them, made once when a model is loaded.
//
// A matrix is cut into panels of 32 output rows; a panel holds its groups of 32 inputs one after the other.
//
//   float32  group: 32 inputs x [32 rows of float32]
//   f16      group: 32 inputs x [32 rows of two bytes]: an input is one line of 64 bytes
//   bf16     likewise
//   q4       group: | 32 x scale f16 | 32 x minimum f16 | half 0: 4 chunks | half 1: 4 chunks |       640 bytes
//   q8       group: | 32 x scale f16 | half 0: 8 chunks | half 1: 8 chunks |                         1088 bytes
//
// A half is 16 rows. A chunk is 64 bytes: lane r (4 bytes) belongs to row r. In q4, byte j of chunk c holds input
// 4c + j in its low and 16 + 4c + j in its high nibble; the value is scale * q + minimum. In q8, byte j of chunk c holds input 4c + j
// as q + 128; the value is scale * (byte - 128). Rows past the end, and inputs past the end, are zero.
//
// Paths that multiply in bf16 keep rows together, since they decode a row's group in one register (decode_bf16.hpp):
//
//   q4_rows    group: | 32 x scale f16 | 32 x minimum f16 | 8 chunks, of 4 rows each |                 640 bytes
//   q8_rows    group: | 32 x scale f16 | 16 chunks, of 2 rows each |                                  1088 bytes
//   bf16_rows  group: 32 rows x 32 inputs, rounded to bf16                                            2048 bytes
//
// A chunk is 64 bytes. In q4_rows, word i (2 bytes) of chunk c holds input i of row 4c + j in its nibble j. In q8_rows,
// lane i (4 bytes) of chunk c holds, as q + 128, inputs i and 16 + i of row 2c, then the same of row 2c + 1.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace puna {

constexpr size_t Q4_GROUP_BYTES = 2 * PANEL * 2 + PANEL * GROUP / 2;
constexpr size_t Q8_GROUP_BYTES = PANEL * 2 + PANEL * GROUP;
constexpr size_t HALF_GROUP_BYTES = 2 * PANEL * GROUP;
constexpr size_t F32_GROUP_BYTES = sizeof(float) * PANEL * GROUP;

enum class FileType { f32, f16, bf16, q8_0, q4_0, q4_1 };

// Throws std::invalid_argument for a name that is not known.
FileType file_type(const std::string& name);

// Bytes of one row of `width` values, which must be whole blocks.
size_t row_bytes(FileType type, int64_t width);

// Decodes one row exactly.
void decode_row(FileType type, const uint8_t* data, int64_t width, float* out);

// The layout a type is packed into: integers only where `integer`, by rows where the path multiplies in `bf16` then,
// and f16 as it is where the path has an instruction that widens `halves`.
Layout packed_layout(FileType type, bool integer, bool bf16, bool halves);

size_t panel_bytes(Layout layout, int64_t in_features);

// Packs panels [first, last) of a matrix that lies row by row in `data` into `out` (panel_bytes each).
void pack_panels(FileType type, Layout layout, const uint8_t* data, int64_t out_features, int64_t in_features,
                 int64_t first, int64_t last, uint8_t* out);

// Decodes row `row` of a packed matrix: to the bit what decode_row makes of the row that was packed.
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace puna
