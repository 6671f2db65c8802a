#define PUNA_PATH 256
#include "path.hpp"

namespace puna {
const KernelTable avx2_kernels = PUNA_TABLE("avx2");
}
