#define PUNA_PATH 512
#include "path.hpp"

namespace puna {
const KernelTable avx512_kernels = PUNA_TABLE("avx512");
}
