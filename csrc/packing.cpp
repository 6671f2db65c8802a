#include "packing.hpp"

#include <cstring>
#include <stdexcept>

#include "numeric.hpp"

namespace puna {

namespace {

struct Block {
  int values;
  int bytes;
};

Block block_of(FileType type) {
  switch (type) {
    case FileType::f32: return {1, 4};
    case FileType::f16: return {1, 2};
    case FileType::bf16: return {1, 2};
    case FileType::q8_0: return {32, 34};
    case FileType::q4_0: return {32, 18};
    case FileType::q4_1: return {32, 20};
  }
  throw std::logic_error("file type");
}

void write_u16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, sizeof value); }

// -8 * d is exact in half precision unless it leaves the range; a scale that large is not a weight's.
uint16_t minus_eight_times(uint16_t half) {
  const uint32_t exponent = (half >> 10) & 31u;
  if ((half & 0x7fffu) == 0) return static_cast<uint16_t>(half ^ 0x8000u);
  if (exponent == 0) {  // subnormal: the product may become normal
    const float value = half_to_float(half) * -8.0f;
    uint32_t mantissa = static_cast<uint32_t>((value < 0 ? -value : value) * 16777216.0f);  // in units of 2^-24
    uint32_t shift = 0;
    while (mantissa >= 2048u) mantissa >>= 1, ++shift;
    const uint32_t bits = mantissa < 1024u ? mantissa : ((shift + 1) << 10) | (mantissa & 1023u);
    return static_cast<uint16_t>(bits | (value < 0 ? 0x8000u : 0u));
  }
  if (exponent + 3 >= 31) throw std::invalid_argument("a Q4_0 scale is too large or not a number");
  return static_cast<uint16_t>((half + (3u << 10)) ^ 0x8000u);
}

void pack_q4_row(FileType type, const uint8_t* row, int64_t groups, int lane, uint8_t* panel) {
  const Block block = block_of(type);
  const int half = lane / 16;
  const int r = lane % 16;
  for (int64_t g = 0; g < groups; ++g, row += block.bytes, panel += Q4_GROUP_BYTES) {
    const uint16_t scale = read_u16(row);
    const bool has_minimum = type == FileType::q4_1;
    write_u16(panel + 2 * lane, scale);
    write_u16(panel + 2 * PANEL + 2 * lane, has_minimum ? read_u16(row + 2) : minus_eight_times(scale));
    const uint8_t* nibbles = row + (has_minimum ? 4 : 2);
    uint8_t* chunks = panel + 4 * PANEL + half * 256;
    for (int c = 0; c < 4; ++c) std::memcpy(chunks + 64 * c + 4 * r, nibbles + 4 * c, 4);
  }
}

void pack_q8_row(const uint8_t* row, int64_t groups, int lane, uint8_t* panel) {
  const int half = lane / 16;
  const int r = lane % 16;
  for (int64_t g = 0; g < groups; ++g, row += 34, panel += Q8_GROUP_BYTES) {
    write_u16(panel + 2 * lane, read_u16(row));
    uint8_t* chunks = panel + 2 * PANEL + half * 512;
    for (int k = 0; k < GROUP; ++k) chunks[64 * (k / 4) + 4 * r + k % 4] = static_cast<uint8_t>(row[2 + k] ^ 0x80u);
  }
}

void pack_q4_rows(FileType type, const uint8_t* row, int64_t groups, int lane, uint8_t* panel) {
  const Block block = block_of(type);
  for (int64_t g = 0; g < groups; ++g, row += block.bytes, panel += Q4_GROUP_BYTES) {
    const uint16_t scale = read_u16(row);
    const bool has_minimum = type == FileType::q4_1;
    write_u16(panel + 2 * lane, scale);
    write_u16(panel + 2 * PANEL + 2 * lane, has_minimum ? read_u16(row + 2) : minus_eight_times(scale));
    const uint8_t* nibbles = row + (has_minimum ? 4 : 2);
    uint8_t* chunk = panel + 4 * PANEL + lane / 4 * 64 + lane % 4 / 2;
    const int shift = lane % 2 * 4;
    for (int i = 0; i < 16; ++i) {
      chunk[2 * i] = static_cast<uint8_t>(chunk[2 * i] | (nibbles[i] & 15) << shift);
      chunk[2 * (i + 16)] = static_cast<uint8_t>(chunk[2 * (i + 16)] | (nibbles[i] >> 4) << shift);
    }
  }
}

void pack_q8_rows(const uint8_t* row, int64_t groups, int lane, uint8_t* panel) {
  for (int64_t g = 0; g < groups; ++g, row += 34, panel += Q8_GROUP_BYTES) {
    write_u16(panel + 2 * lane, read_u16(row));
    uint8_t* chunk = panel + 2 * PANEL + lane / 2 * 64 + lane % 2 * 2;
    for (int k = 0; k < GROUP; ++k) chunk[4 * (k % 16) + k / 16] = static_cast<uint8_t>(row[2 + k] ^ 0x80u);
  }
}

void pack_bf16_row(const float* row, int64_t width, int lane, uint8_t* panel) {
  for (int64_t k = 0; k < width; ++k)
    write_u16(panel + k / GROUP * static_cast<int64_t>(HALF_GROUP_BYTES) + 2 * (lane * GROUP + k % GROUP), float_to_bf16(row[k]));
}

void pack_half_row(const uint8_t* row, int64_t width, int lane, uint8_t* panel) {
  for (int64_t k = 0; k < width; ++k) std::memcpy(panel + 2 * (k * PANEL + lane), row + 2 * k, 2);
}

void unpack_q4_row(const uint8_t* panel, int64_t groups, int lane, float* out) {
  for (int64_t g = 0; g < groups; ++g, panel += Q4_GROUP_BYTES, out += GROUP) {
    const float scale = half_to_float(read_u16(panel + 2 * lane));
    const float minimum = half_to_float(read_u16(panel + 2 * PANEL + 2 * lane));
    const uint8_t* chunks = panel + 4 * PANEL + lane / 16 * 256 + 4 * (lane % 16);
    for (int k = 0; k < GROUP / 2; ++k) {
      const uint8_t byte = chunks[64 * (k / 4) + k % 4];
      out[k] = scale * static_cast<float>(byte & 15) + minimum;
      out[GROUP / 2 + k] = scale * static_cast<float>(byte >> 4) + minimum;
    }
  }
}

void unpack_q8_row(const uint8_t* panel, int64_t groups, int lane, float* out) {
  for (int64_t g = 0; g < groups; ++g, panel += Q8_GROUP_BYTES, out += GROUP) {
    const float scale = half_to_float(read_u16(panel + 2 * lane));
    const uint8_t* chunks = panel + 2 * PANEL + lane / 16 * 512 + 4 * (lane % 16);
    for (int k = 0; k < GROUP; ++k) out[k] = scale * static_cast<float>(chunks[64 * (k / 4) + k % 4] - 128);
  }
}

void unpack_q4_rows(const uint8_t* panel, int64_t groups, int lane, float* out) {
  for (int64_t g = 0; g < groups; ++g, panel += Q4_GROUP_BYTES, out += GROUP) {
    const float scale = half_to_float(read_u16(panel + 2 * lane));
    const float minimum = half_to_float(read_u16(panel + 2 * PANEL + 2 * lane));
    const uint8_t* chunk = panel + 4 * PANEL + lane / 4 * 64 + lane % 4 / 2;
    for (int k = 0; k < GROUP; ++k) out[k] = scale * static_cast<float>(chunk[2 * k] >> lane % 2 * 4 & 15) + minimum;
  }
}

void unpack_q8_rows(const uint8_t* panel, int64_t groups, int lane, float* out) {
  for (int64_t g = 0; g < groups; ++g, panel += Q8_GROUP_BYTES, out += GROUP) {
    const float scale = half_to_float(read_u16(panel + 2 * lane));
    const uint8_t* chunk = panel + 2 * PANEL + lane / 2 * 64 + lane % 2 * 2;
    for (int k = 0; k < GROUP; ++k) out[k] = scale * static_cast<float>(chunk[4 * (k % 16) + k / 16] - 128);
  }
}

void unpack_bf16_row(const uint8_t* panel, int64_t width, int lane, float* out) {
  for (int64_t k = 0; k < width; ++k)
    out[k] = bf16_to_float(read_u16(panel + k / GROUP * static_cast<int64_t>(HALF_GROUP_BYTES) + 2 * (lane * GROUP + k % GROUP)));
}

}  // namespace

FileType file_type(const std::string& name) {
  if (name == "F32") return FileType::f32;
  if (name == "F16") return FileType::f16;
  if (name == "BF16") return FileType::bf16;
  if (name == "Q8_0") return FileType::q8_0;
  if (name == "Q4_0") return FileType::q4_0;
  if (name == "Q4_1") return FileType::q4_1;
  throw std::invalid_argument("element type " + name + " is not known to the native core");
}

size_t row_bytes(FileType type, int64_t width) {
  const Block block = block_of(type);
  if (width % block.values != 0) throw std::invalid_argument("a row is not a whole number of blocks");
  return static_cast<size_t>(width / block.values) * static_cast<size_t>(block.bytes);
}

void decode_row(FileType type, const uint8_t* p, int64_t width, float* out) {
  const Block block = block_of(type);
  for (int64_t k = 0; k < width; k += block.values, p += block.bytes, out += block.values) {
    switch (type) {
      case FileType::f32: std::memcpy(out, p, 4); break;
      case FileType::f16: *out = half_to_float(read_u16(p)); break;
      case FileType::bf16: *out = bf16_to_float(read_u16(p)); break;
      case FileType::q8_0: {
        const float scale = half_to_float(read_u16(p));
        for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(static_cast<int8_t>(p[2 + i]));
        break;
      }
      case FileType::q4_0: {
        const float scale = half_to_float(read_u16(p));
        for (int i = 0; i < 16; ++i) {
          out[i] = scale * static_cast<float>((p[2 + i] & 15) - 8);
          out[16 + i] = scale * static_cast<float>((p[2 + i] >> 4) - 8);
        }
        break;
      }
      case FileType::q4_1: {
        const float scale = half_to_float(read_u16(p));
        const float minimum = half_to_float(read_u16(p + 2));
        for (int i = 0; i < 16; ++i) {
          out[i] = scale * static_cast<float>(p[4 + i] & 15) + minimum;
          out[16 + i] = scale * static_cast<float>(p[4 + i] >> 4) + minimum;
        }
        break;
      }
    }
  }
}

Layout packed_layout(FileType type, bool integer, bool bf16, bool halves) {
  const bool by_rows = integer && bf16;
  switch (type) {
    case FileType::f32: return Layout::float32;
    case FileType::f16: return by_rows ? Layout::bf16_rows : halves ? Layout::f16 : Layout::float32;
    case FileType::bf16: return by_rows ? Layout::bf16_rows : Layout::bf16;
    case FileType::q8_0: return by_rows ? Layout::q8_rows : integer ? Layout::q8 : Layout::float32;
    case FileType::q4_0:
    case FileType::q4_1: return by_rows ? Layout::q4_rows : integer ? Layout::q4 : Layout::float32;
  }
  throw std::logic_error("file type");
}

size_t panel_bytes(Layout layout, int64_t in_features) {
  const size_t groups = static_cast<size_t>((in_features + GROUP - 1) / GROUP);
  switch (layout) {
    case Layout::q4:
    case Layout::q4_rows: return groups * Q4_GROUP_BYTES;
    case Layout::q8:
    case Layout::q8_rows: return groups * Q8_GROUP_BYTES;
    case Layout::f16:
    case Layout::bf16:
    case Layout::bf16_rows: return groups * HALF_GROUP_BYTES;
    case Layout::float32: return groups * F32_GROUP_BYTES;
  }
  throw std::logic_error("layout");
}

void pack_panels(FileType type, Layout layout, const uint8_t* data, int64_t out_features, int64_t in_features,
                 int64_t first, int64_t last, uint8_t* out) {
  const size_t stride = row_bytes(type, in_features);
  const size_t bytes = panel_bytes(layout, in_features);
  const int64_t groups = (in_features + GROUP - 1) / GROUP;
  std::vector<float> row(static_cast<size_t>(in_features));
  for (int64_t p = first; p < last; ++p) {
    uint8_t* panel = out + static_cast<size_t>(p) * bytes;
    std::memset(panel, 0, bytes);
    for (int lane = 0; lane < PANEL && p * PANEL + lane < out_features; ++lane) {
      const uint8_t* source = data + static_cast<size_t>(p * PANEL + lane) * stride;
      switch (layout) {
        case Layout::q4: pack_q4_row(type, source, groups, lane, panel); break;
        case Layout::q8: pack_q8_row(source, groups, lane, panel); break;
        case Layout::q4_rows: pack_q4_rows(type, source, groups, lane, panel); break;
        case Layout::q8_rows: pack_q8_rows(source, groups, lane, panel); break;
        case Layout::f16:
        case Layout::bf16: pack_half_row(source, in_features, lane, panel); break;
        case Layout::bf16_rows:
          decode_row(type, source, in_features, row.data());
          pack_bf16_row(row.data(), in_features, lane, panel);
          break;
        case Layout::float32:
          decode_row(type, source, in_features, row.data());
          float* values = reinterpret_cast<float*>(panel);
          for (int64_t k = 0; k < in_features; ++k) values[k * PANEL + lane] = row[static_cast<size_t>(k)];
          break;
      }
    }
  }
}

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
  const uint8_t* panel = matrix.panels + static_cast<size_t>(row / PANEL) * matrix.panel_bytes;
  const int lane = static_cast<int>(row % PANEL);
  switch (matrix.layout) {
    case Layout::q4: return unpack_q4_row(panel, matrix.groups(), lane, out);
    case Layout::q8: return unpack_q8_row(panel, matrix.groups(), lane, out);
    case Layout::q4_rows: return unpack_q4_rows(panel, matrix.groups(), lane, out);
    case Layout::q8_rows: return unpack_q8_rows(panel, matrix.groups(), lane, out);
    case Layout::bf16_rows: return unpack_bf16_row(panel, matrix.in_features, lane, out);
    case Layout::f16:
      for (int64_t k = 0; k < matrix.in_features; ++k) out[k] = half_to_float(read_u16(panel + 2 * (k * PANEL + lane)));
      return;
    case Layout::bf16:
      for (int64_t k = 0; k < matrix.in_features; ++k) out[k] = bf16_to_float(read_u16(panel + 2 * (k * PANEL + lane)));
      return;
    case Layout::float32:
      for (int64_t k = 0; k < matrix.in_features; ++k)
        std::memcpy(out + k, panel + sizeof(float) * static_cast<size_t>(k * PANEL + lane), sizeof(float));
      return;
  }
}

}  // namespace puna
