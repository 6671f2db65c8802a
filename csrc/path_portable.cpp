#define PUNA_PATH 0
#include "path.hpp"

namespace puna {
const KernelTable portable_kernels = PUNA_TABLE("portable");
}
