// Every loop keeps twelve independent sums, more than latency times width needs. The vector loops are compiled for
// their own instructions by an attribute, so this file needs no flags and runs wherever the path that asks for it runs.
#include "limits_loops.hpp"

#ifdef PUNA_X86
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace puna::loops {

namespace {

constexpr int SUMS = 12;
constexpr int LANES = 16;

uint64_t read_portable(const uint8_t* from, size_t bytes) {
  const uint64_t* words = reinterpret_cast<const uint64_t*>(from);
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes / sizeof(uint64_t); i += 8)
    for (size_t lane = 0; lane < 8; ++lane) sums[lane] ^= words[i + lane];
  uint64_t sum = 0;
  for (const uint64_t lane : sums) sum ^= lane;
  return sum;
}

double f32_portable(int64_t turns) {
  float sums[4 * LANES] = {};
  float by = 0.999f, plus = 1e-9f;
  for (int64_t i = 0; i < turns; ++i) {
    asm volatile("" : "+m"(by), "+m"(plus));
    for (float& sum : sums) sum = sum * by + plus;
  }
  asm volatile("" : : "m"(sums));
  return static_cast<double>(turns) * 4 * LANES * 2;
}

// Bytes times bytes into 32-bit sums, four to a sum, as the portable path does it.
double int8_portable(int64_t turns) {
  int32_t sums[LANES] = {};
  uint8_t bytes[4 * LANES];
  int8_t four[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4 * LANES; ++i) bytes[i] = static_cast<uint8_t>(i);
  for (int64_t i = 0; i < turns; ++i) {
    asm volatile("" : "+m"(bytes), "+m"(four));
    for (int lane = 0; lane < LANES; ++lane)
      for (int k = 0; k < 4; ++k) sums[lane] += bytes[4 * lane + k] * four[k];
  }
  asm volatile("" : : "m"(sums));
  return static_cast<double>(turns) * LANES * 4 * 2;
}

#ifdef PUNA_X86

__attribute__((target("avx2"))) uint64_t read_avx2(const uint8_t* from, size_t bytes) {
  __m256i sums[8] = {};
  for (size_t at = 0; at < bytes; at += 512)
    for (int i = 0; i < 16; ++i)
      sums[i % 8] = _mm256_xor_si256(sums[i % 8], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at + 32 * i)));
  for (int i = 1; i < 8; ++i) sums[0] = _mm256_xor_si256(sums[0], sums[i]);
  uint64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sums[0]);
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const uint8_t* from, size_t bytes) {
  __m512i sums[8] = {};
  for (size_t at = 0; at < bytes; at += 512)
    for (int i = 0; i < 8; ++i) sums[i] = _mm512_xor_si512(sums[i], _mm512_loadu_si512(from + at + 64 * i));
  for (int i = 1; i < 8; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
  uint64_t lanes[8], sum = 0;
  _mm512_storeu_si512(lanes, sums[0]);
  for (const uint64_t lane : lanes) sum ^= lane;
  return sum;
}

// One loop a row: `STEP` is what is done to a sum. x and y change behind the compiler's back, so nothing is hoisted;
// unrolled, for otherwise the sums would live in memory.
#define PUNA_LOOP(name, instructions, vector, fill_x, fill_y, STEP, operations)                     \
  __attribute__((target(instructions))) double name(int64_t turns) {                                \
    vector sums[SUMS] = {};                                                                         \
    auto x = fill_x, y = fill_y;                                                                    \
    for (int64_t n = 0; n < turns; ++n) {                                                           \
      _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; ++i) {                                     \
        asm volatile("" : "+x"(x), "+x"(y));                                                        \
        sums[i] = STEP;                                                                             \
      }                                                                                             \
    }                                                                                               \
    for (int i = 0; i < SUMS; ++i) asm volatile("" : : "x"(sums[i]));                               \
    return static_cast<double>(turns) * SUMS * (operations);                                        \
  }

PUNA_LOOP(f32_avx512, "avx512f", __m512, _mm512_set1_ps(0.999f), _mm512_set1_ps(1e-9f),
          _mm512_fmadd_ps(sums[i], x, y), 16 * 2)
PUNA_LOOP(f32_avx2, "avx2,fma", __m256, _mm256_set1_ps(0.999f), _mm256_set1_ps(1e-9f),
          _mm256_fmadd_ps(sums[i], x, y), 8 * 2)
PUNA_LOOP(int8_avx512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32(0x03030303), _mm512_set1_epi32(0x01010101),
          _mm512_dpbusd_epi32(sums[i], x, y), 64 * 2)
PUNA_LOOP(int8_avx2, "avx2", __m256i, _mm256_set1_epi8(3), _mm256_set1_epi8(1),
          _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), y)), 32 * 2)
PUNA_LOOP(bf16_avx512, "avx512f,avx512bf16", __m512, (__m512bh)_mm512_set1_epi32(0x3c003c00),
          (__m512bh)_mm512_set1_epi32(0x3c003c01), _mm512_dpbf16_ps(sums[i], x, y), 32 * 2)

#undef PUNA_LOOP

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four sums in tiles 0 to 3 from two tiles of each side. The configuration is handed over whole: GCC 12's own
// _tile_loadconfig says that it reads only eight bytes of it, and then the other bytes are never written.
#define PUNA_TILE_LOOP(name, instructions, dot, operations)                                \
  __attribute__((target(instructions))) double name(int64_t turns) {                       \
    const TileShapes shapes;                                                               \
    asm volatile("ldtilecfg %0" : : "m"(shapes));                                          \
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);                            \
    _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);                            \
    for (int64_t n = 0; n < turns; ++n) {                                                  \
      dot(0, 4, 6); dot(1, 4, 7); dot(2, 5, 6); dot(3, 5, 7);                              \
    }                                                                                      \
    _tile_release();                                                                       \
    return static_cast<double>(turns) * 4 * (operations);                                  \
  }

PUNA_TILE_LOOP(int8_amx, "amx-tile,amx-int8", _tile_dpbusd, 16 * 16 * 64 * 2)
PUNA_TILE_LOOP(bf16_amx, "amx-tile,amx-bf16", _tile_dpbf16ps, 16 * 16 * 32 * 2)

#undef PUNA_TILE_LOOP

bool processor_has(unsigned subleaf, int which, int bit) {
  unsigned r[4] = {};
  return __get_cpuid_count(7, subleaf, &r[0], &r[1], &r[2], &r[3]) && ((r[which] >> bit) & 1u);
}

// AMX has to be asked for; the system may refuse.
bool tiles_allowed() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return processor_has(0, 3, 24) && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#endif

}  // namespace

void relax() {
#ifdef PUNA_X86
  _mm_pause();
#endif
}

Read read_of(const std::string& path) {
#ifdef PUNA_X86
  if (path.starts_with("avx512") || path.starts_with("amx")) return read_avx512;
  if (path.starts_with("avx2")) return read_avx2;
#endif
  (void)path;
  return read_portable;
}

Multiply multiply_of(const std::string& path, const std::string& kind) {
#ifdef PUNA_X86
  if (path.starts_with("avx512") || path.starts_with("amx")) {
    if (kind == "f32") return f32_avx512;
    if (kind == "int8") return int8_avx512;
    if (kind == "bf16") return processor_has(1, 0, 5) ? bf16_avx512 : nullptr;
    if (kind == "int8_tiles") return processor_has(0, 3, 25) && tiles_allowed() ? int8_amx : nullptr;
    if (kind == "bf16_tiles") return processor_has(0, 3, 22) && tiles_allowed() ? bf16_amx : nullptr;
  }
  if (path.starts_with("avx2") && kind == "f32") return f32_avx2;
  if (path.starts_with("avx2") && kind == "int8") return int8_avx2;
#endif
  if (path == "portable" && kind == "f32") return f32_portable;
  if (path == "portable" && kind == "int8") return int8_portable;
  return nullptr;
}

}  // namespace puna::loops
