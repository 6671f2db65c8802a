// The table of one instruction path. Included by exactly one source file a path, after PUNA_PATH is set.
#pragma once

#include "attention.hpp"
#include "matmul.hpp"
#include "quantize.hpp"
#include "rowwise.hpp"

#define PUNA_TABLE(label)                                                                                          \
  {                                                                                                                \
    label, PUNA_NS::linear, PUNA_NS::quantize, PUNA_NS::rms_norm, PUNA_NS::layer_norm, PUNA_NS::gate,              \
        PUNA_NS::add_rows, PUNA_NS::attend, PUNA_NS::to_half, PUNA_NS::maximum, PUNA_NS::sum_exp                   \
  }
