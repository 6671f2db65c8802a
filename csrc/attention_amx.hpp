// Attention for processors with tiles of bf16: see attention_amx.cpp. Called only where path_amx may run.
#pragma once

#include "kernels.hpp"

namespace puna {

// Rows of a tile of tokens: they pass by each range of keys, which waits for them in the first cache.
constexpr int64_t ATTEND_ROWS_AMX = 192;

// As KernelTable's attend and attend_merge, for caches that lie as tiles want them (CacheLayout::tiles).
void attend_on_tiles(const AttendArgs& args);
void merge_from_tiles(const AttendArgs& args);

}  // namespace puna
