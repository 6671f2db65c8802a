// Chooses instruction paths when the program starts, by what this processor (and its operating system) can run.
#include "kernels.hpp"

namespace puna {

Paths available_paths() {
  Paths paths{{nullptr, nullptr, nullptr}, 0};
#ifdef PUNA_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx512) paths.tables[paths.count++] = &avx512_kernels;
  if (avx2) paths.tables[paths.count++] = &avx2_kernels;
#endif
  paths.tables[paths.count++] = &portable_kernels;
  return paths;
}

}  // namespace puna
