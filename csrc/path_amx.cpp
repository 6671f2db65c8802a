// The path of processors with tiles of bf16: what avx512 does, but for its linears. Float32 layouts stay with avx512.
#define PUNA_PATH 512
#include "gated_amx.hpp"
#include "matmul_amx.hpp"

namespace puna {

namespace {

void linear(const LinearArgs& a, const LinearPart& part) {
  if (!a.matrix->by_rows || a.matrix->layout == Layout::float32) return avx512_kernels.linear(a, part);
  path_amx::multiply(a, part);
}

KernelTable amx_table() {
  KernelTable table = avx512_kernels;
  table.name = "amx";
  table.bf16 = true;
  table.linear = linear;
  table.gated = path_amx::gated;
  table.block_rows = path_amx::BLOCK_ROWS;
  table.quantize = path_amx::round_bf16;
  table.arrange = path_amx::arrange;
  table.arranged_rows = path_amx::MANY;
  return table;
}

}  // namespace

const KernelTable amx_kernels = amx_table();

}  // namespace puna
