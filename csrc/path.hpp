// The table of one instruction path. Included by exactly one source file a path, after PUNA_PATH is set.
#pragma once

#include "attention.hpp"
#include "cache_writing.hpp"
#include "matmul.hpp"
#include "quantize.hpp"
#include "rowwise.hpp"
#include "sampling.hpp"

#define PUNA_SAMPLING                                                                                          \
  {                                                                                                            \
    PUNA_NS::tile_maxima, PUNA_NS::mask_row, PUNA_NS::mass, PUNA_NS::tails, PUNA_NS::count_from,               \
        PUNA_NS::collect, PUNA_NS::weigh, PUNA_NS::weight_before, PUNA_NS::contend, PUNA_NS::contend_tile      \
  }

#define PUNA_TABLE(label)                                                                                          \
  {                                                                                                                \
    label, false, PUNA_NS::linear, nullptr, PUNA_NS::block_rows, PUNA_NS::quantize, 0, nullptr,                    \
        PUNA_NS::rms_norm,                                                                                         \
        PUNA_NS::layer_norm, PUNA_NS::gate, PUNA_NS::add_rows, PUNA_NS::attend_rows, false, PUNA_NS::attend,        \
        PUNA_NS::attend_merge,                                                                                     \
        PUNA_NS::store_cache, PUNA_NS::rope, PUNA_NS::maximum, PUNA_NS::sum_exp, PUNA_SAMPLING                     \
  }
