#include "packing.hpp"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "code_places.hpp"
#include "numeric.hpp"

namespace puna {

namespace {

void write_u16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, sizeof value); }

// The factors of row `lane`, where they lie for group `place`. KEEP stores them there, else they are read back.
template <Layout LAYOUT, bool KEEP, class Group>
void move_factors(const GroupPlace& place, int lane, Group& group) {
  constexpr Shape shape = shape_of(LAYOUT);
  const auto move = [&](const uint8_t* at, auto& value) {
    if constexpr (KEEP) std::memcpy(const_cast<uint8_t*>(at), &value, sizeof value);
    else std::memcpy(&value, at, sizeof value);
  };
  if constexpr (shape.floats) {
    for (int run = 0; run < 2; ++run) move(place.group + 4 * (PANEL * run + lane), group.factors[run]);
    return;
  }
  const uint8_t* halves = shape.sub ? place.header : place.group;
  move(halves + 2 * lane, group.scale);
  if constexpr (shape.minimum) move(halves + 2 * (PANEL + lane), group.minimum);
  if constexpr (shape.sub) {
    const uint8_t* sub = place.header + 2 * PANEL * shape.kinds() + static_cast<size_t>(place.number) * shape.sub_bytes() + lane;
    for (int run = 0; run < 2; ++run) {  // both are the same where they are one
      const int at = PANEL * (run % shape.runs);
      move(sub + at, group.scales[run]);
      if constexpr (shape.minimum) move(sub + PANEL * shape.runs + at, group.minimums[run]);
    }
  }
}

// Codes of a panel's group, 32 rows of 32 inputs, to where code_places.hpp says that their bits lie. Nibbles and bytes,
// which most weights are, in a few operations on whole rows; the others bit by bit.
template <Codes CODES, bool BY_ROWS>
void place_codes(const uint8_t (*rows)[GROUP], uint8_t* out) {
  if constexpr (CODES == Codes::nibbles && BY_ROWS) {
    for (int r = 0; r < PANEL; r += 4, out += 2 * GROUP) {
      uint16_t words[GROUP];
      for (int i = 0; i < GROUP; ++i)
        words[i] = static_cast<uint16_t>(rows[r][i] | rows[r + 1][i] << 4 | rows[r + 2][i] << 8 | rows[r + 3][i] << 12);
      std::memcpy(out, words, sizeof words);
    }
  } else if constexpr (CODES == Codes::nibbles) {
    for (int r = 0; r < PANEL; ++r) {
      uint8_t pairs[GROUP / 2];
      for (int i = 0; i < GROUP / 2; ++i) pairs[i] = static_cast<uint8_t>(rows[r][i] | rows[r][GROUP / 2 + i] << 4);
      for (int c = 0; c < 4; ++c) std::memcpy(out + 256 * (r / 16) + 64 * c + 4 * (r % 16), pairs + 4 * c, 4);
    }
  } else if constexpr (CODES == Codes::bytes && BY_ROWS) {
    for (int r = 0; r < PANEL; r += 2)
      for (int i = 0; i < GROUP / 2; ++i, out += 4)
        out[0] = rows[r][i], out[1] = rows[r][GROUP / 2 + i], out[2] = rows[r + 1][i], out[3] = rows[r + 1][GROUP / 2 + i];
  } else if constexpr (CODES == Codes::bytes) {
    for (int r = 0; r < PANEL; ++r)
      for (int c = 0; c < 8; ++c) std::memcpy(out + 512 * (r / 16) + 64 * c + 4 * (r % 16), rows[r] + 4 * c, 4);
  } else {
    for (int r = 0; r < PANEL; ++r)
      for (int k = 0; k < GROUP; ++k)
        for_bits<CODES, BY_ROWS>(r, k, [&](BitPlace at, int bit, int width) {
          const int bits = rows[r][k] >> bit & ((1 << width) - 1);
          out[at.byte] = static_cast<uint8_t>(out[at.byte] | bits << at.shift);
        });
  }
}

bool is_finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

[[noreturn]] void refuse_scale(int64_t row, int64_t group) {
  throw std::invalid_argument("the scale of inputs " + std::to_string(group * GROUP) + " to " +
                              std::to_string(group * GROUP + GROUP - 1) + " in row " + std::to_string(row) +
                              " is not a finite number");
}

// `first` is the matrix's row that is the panel's first. Throws std::invalid_argument for a scale that is infinite or
// not a number: every answer would be NaN.
template <Layout LAYOUT, bool BY_ROWS>
void pack_panel(FileType type, const uint8_t* row, size_t stride, int64_t first, int rows, int64_t groups, uint8_t* panel) {
  constexpr Shape shape = shape_of(LAYOUT);
  for (int64_t g = 0; g < groups; ++g) {
    const GroupPlace place = place_of<LAYOUT>(panel, g);
    uint8_t codes[PANEL][GROUP];
    if (rows < PANEL) std::memset(codes, 0, sizeof codes);
    for (int lane = 0; lane < rows; ++lane) {
      const WeightGroup group = read_group(type, row + static_cast<size_t>(lane) * stride, g);
      if (!shape.floats && !(is_finite(group.scale) && is_finite(group.minimum))) refuse_scale(first + lane, g);
      move_factors<LAYOUT, true>(place, lane, group);
      std::memcpy(codes[lane], group.codes, sizeof group.codes);
    }
    place_codes<shape.codes, BY_ROWS>(codes, const_cast<uint8_t*>(place.group) + shape.factor_bytes());
  }
}

template <Layout LAYOUT, bool BY_ROWS>
void unpack(const uint8_t* panel, int64_t groups, int lane, float* out) {
  constexpr Shape shape = shape_of(LAYOUT);
  for (int64_t g = 0; g < groups; ++g, out += GROUP) {
    const GroupPlace place = place_of<LAYOUT>(panel, g);
    const uint8_t* codes = place.group + shape.factor_bytes();
    WeightGroup group;
    move_factors<LAYOUT, false>(place, lane, group);
    for (int k = 0; k < GROUP; ++k) {
      int code = 0;
      for_bits<shape.codes, BY_ROWS>(lane, k, [&](BitPlace at, int bit, int width) {
        code |= (codes[at.byte] >> at.shift & ((1 << width) - 1)) << bit;
      });
      group.codes[k] = static_cast<uint8_t>(code);
    }
    decode_group(LAYOUT, group, out);
  }
}

// Two bytes of an input, by rows or input after input. Rows of f16 are the even and the odd inputs of a group.
int64_t half_place(Layout layout, int64_t k, int64_t lane, bool by_rows) {
  if (!by_rows) return 2 * (k * PANEL + lane);
  const int64_t input = layout == Layout::f16 ? k % 2 * (GROUP / 2) + k % GROUP / 2 : k % GROUP;
  return 2 * (PANEL * (k / GROUP * GROUP) + lane * GROUP + input);
}

void pack_floats(FileType type, Layout layout, bool by_rows, const uint8_t* row, int64_t width, int lane, uint8_t* panel) {
  std::vector<float> values(static_cast<size_t>(width));
  decode_row(type, row, width, values.data());
  for (int64_t k = 0; k < width; ++k) {
    const float value = values[static_cast<size_t>(k)];
    if (layout == Layout::float32) std::memcpy(panel + sizeof(float) * static_cast<size_t>(k * PANEL + lane), &value, sizeof value);
    else if (layout == Layout::f16) std::memcpy(panel + half_place(layout, k, lane, by_rows), row + 2 * k, 2);
    else write_u16(panel + half_place(layout, k, lane, by_rows), float_to_bf16(value));
  }
}

void unpack_floats(const Matrix& matrix, const uint8_t* panel, int lane, float* out) {
  for (int64_t k = 0; k < matrix.in_features; ++k) {
    const uint8_t* half = panel + half_place(matrix.layout, k, lane, matrix.by_rows);
    if (matrix.layout == Layout::float32)
      std::memcpy(out + k, panel + sizeof(float) * static_cast<size_t>(k * PANEL + lane), sizeof(float));
    else out[k] = matrix.layout == Layout::f16 ? half_to_float(read_u16(half)) : bf16_to_float(read_u16(half));
  }
}

bool is_real(Layout layout) { return layout == Layout::float32 || layout == Layout::f16 || layout == Layout::bf16; }

}  // namespace

Layout packed_layout(FileType type, bool integer, bool halves) {
  switch (type) {
    case FileType::f32: return Layout::float32;
    case FileType::bf16: return Layout::bf16;
    case FileType::f16: return halves ? Layout::f16 : Layout::float32;
    default: return integer ? layout_of(type) : Layout::float32;
  }
}

size_t panel_bytes(Layout layout, int64_t in_features) {
  const size_t groups = static_cast<size_t>((in_features + GROUP - 1) / GROUP);
  if (is_real(layout)) return groups * (layout == Layout::float32 ? F32_GROUP_BYTES : HALF_GROUP_BYTES);
  return groups * shape_of(layout).bytes_a_group();
}

void pack_panels(FileType type, Layout layout, bool by_rows, const uint8_t* data, int64_t out_features, int64_t in_features,
                 int64_t first, int64_t last, uint8_t* out) {
  const size_t stride = row_bytes(type, in_features);
  const size_t bytes = panel_bytes(layout, in_features);
  const int64_t groups = (in_features + GROUP - 1) / GROUP;
  for (int64_t p = first; p < last; ++p) {
    uint8_t* panel = out + static_cast<size_t>(p) * bytes;
    std::memset(panel, 0, bytes);
    const uint8_t* source = data + static_cast<size_t>(p * PANEL) * stride;
    const int rows = static_cast<int>(out_features - p * PANEL < PANEL ? out_features - p * PANEL : PANEL);
    for (int lane = 0; is_real(layout) && lane < rows; ++lane)
      pack_floats(type, layout, by_rows, source + static_cast<size_t>(lane) * stride, in_features, lane, panel);
    with_layout(layout, [&](auto constant) {
      if (by_rows) pack_panel<constant(), true>(type, source, stride, p * PANEL, rows, groups, panel);
      else pack_panel<constant(), false>(type, source, stride, p * PANEL, rows, groups, panel);
    });
  }
}

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
  const uint8_t* panel = matrix.panels + static_cast<size_t>(row / PANEL) * matrix.panel_bytes;
  const int lane = static_cast<int>(row % PANEL);
  if (is_real(matrix.layout)) return unpack_floats(matrix, panel, lane, out);
  with_layout(matrix.layout, [&](auto constant) {
    if (matrix.by_rows) unpack<constant(), true>(panel, matrix.groups(), lane, out);
    else unpack<constant(), false>(panel, matrix.groups(), lane, out);
  });
}

}  // namespace puna
