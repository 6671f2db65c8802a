// Chooses instruction paths when the program starts, by what this processor (and its operating system) can run.
#include "kernels.hpp"

#if defined(PUNA_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace puna {

namespace {

#if defined(PUNA_X86)
// Tiles are there, with bf16 in them and in vectors (and shifts across words, and tables of bytes), and Linux lets this
// process have their registers: it has to be asked once, before any thread uses them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, AVX512_BF16 = 1u << 5, VBMI = 1u << 1, VBMI2 = 1u << 6;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (AMX_BF16 | AMX_TILE)) != (AMX_BF16 | AMX_TILE)) return false;
  if ((c & (VBMI | VBMI2)) != (VBMI | VBMI2)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & AVX512_BF16)) return false;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

Paths available_paths() {
  Paths paths{};
#ifdef PUNA_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx512 && may_use_tiles()) paths.tables[paths.count++] = &amx_kernels;
  if (avx512) paths.tables[paths.count++] = &avx512_kernels;
  if (avx2) paths.tables[paths.count++] = &avx2_kernels;
#endif
  paths.tables[paths.count++] = &portable_kernels;
  return paths;
}

}  // namespace puna
