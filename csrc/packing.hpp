// Weights packed for the kernels, once when a model is loaded, and rows read back from what was packed.
//
// The layouts are drawn in layouts.hpp, where the bits of a code lie in code_places.hpp. Knows nothing of how they are
// multiplied.
#pragma once

#include <cstdint>

#include "file_types.hpp"
#include "kernels.hpp"

namespace puna {

// The layout a type is packed into: integers only where `integer`; f16 stays as it is where the path has an instruction
// that widens `halves`.
Layout packed_layout(FileType type, bool integer, bool halves);

size_t panel_bytes(Layout layout, int64_t in_features);

// Packs panels [first, last) of a matrix that lies row by row in `data` into `out` (panel_bytes each). `by_rows`: as
// paths read them that multiply in bf16.
void pack_panels(FileType type, Layout layout, bool by_rows, const uint8_t* data, int64_t out_features, int64_t in_features,
                 int64_t first, int64_t last, uint8_t* out);

// Decodes row `row` of a packed matrix: to the bit what decode_row makes of the row that was packed.
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace puna
