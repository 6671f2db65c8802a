#include "file_types.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "numeric.hpp"

namespace puna {

namespace {

struct Block {
  const char* name;
  int values;
  int bytes;
  Layout layout;
};

Block block_of(FileType type) {
  switch (type) {
    case FileType::f32: return {"F32", 1, 4, Layout::float32};
    case FileType::f16: return {"F16", 1, 2, Layout::float32};
    case FileType::bf16: return {"BF16", 1, 2, Layout::float32};
    case FileType::q4_0: return {"Q4_0", 32, 18, Layout::q4_0};
    case FileType::q4_1: return {"Q4_1", 32, 20, Layout::q4_1};
    case FileType::q5_0: return {"Q5_0", 32, 22, Layout::q5_0};
    case FileType::q5_1: return {"Q5_1", 32, 24, Layout::q5_1};
    case FileType::q8_0: return {"Q8_0", 32, 34, Layout::q8_0};
    case FileType::q2_k: return {"Q2_K", 256, 84, Layout::q2_k};
    case FileType::q3_k: return {"Q3_K", 256, 110, Layout::q3_k};
    case FileType::q4_k: return {"Q4_K", 256, 144, Layout::q4_k};
    case FileType::q5_k: return {"Q5_K", 256, 176, Layout::q5_k};
    case FileType::q6_k: return {"Q6_K", 256, 210, Layout::q6_k};
    case FileType::iq4_nl: return {"IQ4_NL", 32, 18, Layout::iq4_nl};
    case FileType::iq4_xs: return {"IQ4_XS", 256, 136, Layout::iq4_xs};
    case FileType::q4_z: return {"Q4_Z", 32, 20, Layout::q4_z};
    case FileType::grid: return {"GRID", 32, 128, Layout::grid};
  }
  throw std::logic_error("file type");
}

uint8_t as_byte(int value) { return static_cast<uint8_t>(value); }

// Sixteen bytes: the low halves are inputs 0 to 15, the high halves 16 to 31.
void read_nibbles(const uint8_t* bytes, WeightGroup& group) {
  for (int i = 0; i < 16; ++i) group.codes[i] = bytes[i] & 15, group.codes[16 + i] = bytes[i] >> 4;
}

// | scale f16 | minimum f16, if there is one | 4 bytes of high bits, if there are any | 16 bytes of nibbles |
void read_small(const uint8_t* block, bool minimum, bool high, WeightGroup& group) {
  group.scale = read_u16(block);
  if (minimum) group.minimum = read_u16(block + 2);
  const uint8_t* bits = block + (minimum ? 4 : 2);
  read_nibbles(bits + (high ? 4 : 0), group);
  for (int i = 0; high && i < GROUP; ++i) group.codes[i] = as_byte(group.codes[i] | (bits[i / 8] >> i % 8 & 1) << 4);
}

// Run `g` of 32 of a Q4_K or Q5_K block: | scale | minimum | 12 bytes of scales and minima of six bits | ...
void read_six_bit_factors(const uint8_t* block, int g, WeightGroup& group) {
  const uint8_t* s = block + 4;
  group.scale = read_u16(block);
  group.minimum = static_cast<uint16_t>(read_u16(block + 2) ^ 0x8000u);  // it is taken off
  const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
  const int minimum = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | s[g] >> 6 << 4;
  group.scales[0] = group.scales[1] = static_cast<int8_t>(scale);
  group.minimums[0] = group.minimums[1] = static_cast<int8_t>(minimum);
}

// | 16 bytes: a run's scale and minimum | 64 bytes of pairs of bits | scale | minimum |
void read_q2_k(const uint8_t* block, int g, WeightGroup& group) {
  group.scale = read_u16(block + 80);
  group.minimum = static_cast<uint16_t>(read_u16(block + 82) ^ 0x8000u);
  for (int run = 0; run < 2; ++run) {
    group.scales[run] = static_cast<int8_t>(block[2 * g + run] & 15);
    group.minimums[run] = static_cast<int8_t>(block[2 * g + run] >> 4);
  }
  for (int i = 0; i < GROUP; ++i) group.codes[i] = block[16 + 32 * (g / 4) + i] >> 2 * (g % 4) & 3;
}

// | 32 bytes of high bits | 64 bytes of pairs of bits | 12 bytes of scales of six bits, less 32 | scale |
void read_q3_k(const uint8_t* block, int g, WeightGroup& group) {
  group.scale = read_u16(block + 108);
  for (int run = 0; run < 2; ++run) {
    const int r = 2 * g + run;
    const int four = r < 8 ? block[96 + r] & 15 : block[88 + r] >> 4, two = block[104 + r % 4] >> 2 * (r / 4) & 3;
    group.scales[run] = static_cast<int8_t>((four | two << 4) - 32);
  }
  for (int i = 0; i < GROUP; ++i)
    group.codes[i] = as_byte((block[32 + 32 * (g / 4) + i] >> 2 * (g % 4) & 3) | (block[i] >> g & 1) << 2);
}

void read_q4_k(const uint8_t* block, int g, WeightGroup& group) {
  read_six_bit_factors(block, g, group);
  for (int i = 0; i < GROUP; ++i) group.codes[i] = block[16 + 32 * (g / 2) + i] >> 4 * (g % 2) & 15;
}

void read_q5_k(const uint8_t* block, int g, WeightGroup& group) {
  read_six_bit_factors(block, g, group);
  for (int i = 0; i < GROUP; ++i)
    group.codes[i] = as_byte((block[48 + 32 * (g / 2) + i] >> 4 * (g % 2) & 15) | (block[16 + i] >> g & 1) << 4);
}

// | 128 bytes of low nibbles | 64 bytes of pairs of high bits | 16 x int8 scale | scale |
void read_q6_k(const uint8_t* block, int g, WeightGroup& group) {
  const int half = g / 4, quarter = g % 4;
  group.scale = read_u16(block + 208);
  for (int run = 0; run < 2; ++run) group.scales[run] = static_cast<int8_t>(block[192 + 2 * g + run]);
  for (int i = 0; i < GROUP; ++i) {
    const int low = block[64 * half + 32 * (quarter % 2) + i] >> 4 * (quarter / 2) & 15;
    group.codes[i] = as_byte(low | (block[128 + 32 * half + i] >> 2 * quarter & 3) << 4);
  }
}

// | scale | 8 x 2 high bits of scales | 4 bytes of their nibbles | 128 bytes of nibbles |
void read_iq4_xs(const uint8_t* block, int g, WeightGroup& group) {
  group.scale = read_u16(block);
  const int scale = (block[4 + g / 2] >> 4 * (g % 2) & 15) | (read_u16(block + 2) >> 2 * g & 3) << 4;
  group.scales[0] = group.scales[1] = static_cast<int8_t>(scale - 32);
  read_nibbles(block + 8 + 16 * g, group);
}

// Sixteen float32 values as whole multiples of their greatest common factor. One that is not finite makes all NaN.
void read_grid(const uint8_t* values, uint8_t* codes, float& factor) {
  constexpr int UNIT = 149;  // the smallest float32 is 2^-149
  int64_t whole[16] = {};
  int exponents[16] = {}, least = std::numeric_limits<int>::max();
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + 4 * i, sizeof bits);
    const int exponent = static_cast<int>(bits >> 23 & 255u);
    if (exponent == 255) {
      factor = std::numeric_limits<float>::quiet_NaN();
      std::memset(codes, 129, 16);
      return;
    }
    int64_t mantissa = (bits & 0x7fffffu) | (exponent ? 0x800000u : 0u);
    exponents[i] = exponent ? exponent - 1 : 0;  // in units of 2^-149
    for (; mantissa && mantissa % 2 == 0; mantissa /= 2) ++exponents[i];
    if (mantissa) least = std::min(least, exponents[i]);
    whole[i] = bits >> 31 ? -mantissa : mantissa;
  }
  int64_t common = 0;
  for (int i = 0; i < 16; ++i) {
    if (whole[i] == 0) continue;
    if (exponents[i] - least > 7) throw std::invalid_argument("sixteen values have no common factor");
    whole[i] *= int64_t{1} << (exponents[i] - least);
    common = common ? std::gcd(common, whole[i]) : std::abs(whole[i]);
  }
  factor = common ? std::ldexp(static_cast<float>(common), least - UNIT) : 0.0f;
  for (int i = 0; i < 16; ++i) {
    const int64_t code = common ? whole[i] / common : 0;
    if (code > 127 || code < -127) throw std::invalid_argument("sixteen values have no common factor");
    codes[i] = as_byte(static_cast<int>(code) + 128);
  }
}

}  // namespace

FileType file_type(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(FileType::grid); ++i)
    if (name == block_of(static_cast<FileType>(i)).name) return static_cast<FileType>(i);
  throw std::invalid_argument("element type " + name + " is not known to the native core");
}

size_t row_bytes(FileType type, int64_t width) {
  const Block block = block_of(type);
  if (width % block.values != 0) {
    throw std::invalid_argument("a row of " + std::to_string(width) + " values is not a whole number of blocks of " +
                                std::to_string(block.values));
  }
  return static_cast<size_t>(width / block.values) * static_cast<size_t>(block.bytes);
}

Layout layout_of(FileType type) { return block_of(type).layout; }

WeightGroup read_group(FileType type, const uint8_t* row, int64_t g) {
  const Block layout = block_of(type);
  const int groups = layout.values / GROUP;  // of a block
  const uint8_t* block = row + static_cast<size_t>(g / groups) * static_cast<size_t>(layout.bytes);
  const int number = static_cast<int>(g % groups);
  WeightGroup group;
  switch (type) {
    case FileType::q4_0: read_small(block, false, false, group); break;
    case FileType::q4_1: read_small(block, true, false, group); break;
    case FileType::q5_0: read_small(block, false, true, group); break;
    case FileType::q5_1: read_small(block, true, true, group); break;
    case FileType::iq4_nl: read_small(block, false, false, group); break;
    case FileType::q8_0:
      group.scale = read_u16(block);
      for (int i = 0; i < GROUP; ++i) group.codes[i] = block[2 + i] ^ 0x80u;
      break;
    case FileType::q2_k: read_q2_k(block, number, group); break;
    case FileType::q3_k: read_q3_k(block, number, group); break;
    case FileType::q4_k: read_q4_k(block, number, group); break;
    case FileType::q5_k: read_q5_k(block, number, group); break;
    case FileType::q6_k: read_q6_k(block, number, group); break;
    case FileType::iq4_xs: read_iq4_xs(block, number, group); break;
    case FileType::q4_z:
      read_small(block, true, false, group);
      group.minimum = static_cast<uint16_t>(group.minimum ^ 0x8000u);  // it is taken off
      break;
    case FileType::grid:
      for (int run = 0; run < 2; ++run) read_grid(block + 64 * run, group.codes + 16 * run, group.factors[run]);
      break;
    case FileType::f32:
    case FileType::f16:
    case FileType::bf16: throw std::logic_error("a type without integers");
  }
  return group;
}

void decode_group(Layout layout, const WeightGroup& group, float* out) {
  const Shape shape = shape_of(layout);
  for (int run = 0; run < 2; ++run) {
    const float factor = shape.floats ? group.factors[run] : half_to_float(group.scale) * group.scales[run];
    const float unit = shape.zero ? factor : 1.0f;
    const float minimum = shape.minimum ? half_to_float(group.minimum) * group.minimums[run] * unit : 0.0f;
    for (int i = 16 * run; i < 16 * run + 16; ++i) {
      const int code = shape.table ? IQ4_MEANINGS[group.codes[i]] : group.codes[i];
      out[i] = factor * static_cast<float>(code - shape.centre) + minimum;
    }
  }
}

void decode_row(FileType type, const uint8_t* p, int64_t width, float* out) {
  if (type == FileType::f32 || type == FileType::grid) {
    std::memcpy(out, p, sizeof(float) * static_cast<size_t>(width));
    return;
  }
  if (type == FileType::f16 || type == FileType::bf16) {
    for (int64_t k = 0; k < width; ++k)
      out[k] = type == FileType::f16 ? half_to_float(read_u16(p + 2 * k)) : bf16_to_float(read_u16(p + 2 * k));
    return;
  }
  for (int64_t g = 0; g < width / GROUP; ++g) decode_group(layout_of(type), read_group(type, p, g), out + g * GROUP);
}

}  // namespace puna
