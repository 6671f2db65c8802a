// The path of processors with tiles of bf16: what avx512 does, but for its linears. Float32 layouts stay with avx512.
#define PUNA_PATH 512
#include "attention_amx.hpp"
#include "gated_amx.hpp"
#include "matmul_amx.hpp"

namespace puna {

namespace {

void linear(const LinearArgs& a, const LinearPart& part) {
  if (!a.matrix->by_rows || a.matrix->layout == Layout::float32) return avx512_kernels.linear(a, part);
  path_amx::multiply(a, part);
}

int64_t attend_rows(const CacheLayout& layout) {
  return layout.tiles ? ATTEND_ROWS_AMX : avx512_kernels.attend_rows(layout);
}

void attend(const AttendArgs& a) { a.layout.tiles ? attend_on_tiles(a) : avx512_kernels.attend(a); }

void attend_merge(const AttendArgs& a) { a.layout.tiles ? merge_from_tiles(a) : avx512_kernels.attend_merge(a); }

KernelTable amx_table() {
  KernelTable table = avx512_kernels;
  table.name = "amx";
  table.bf16 = true;
  table.linear = linear;
  table.gated = path_amx::gated;
  table.block_rows = path_amx::block_rows;
  table.attend_rows = attend_rows;
  table.cache_tiles = true;
  table.attend = attend;
  table.attend_merge = attend_merge;
  table.quantize = path_amx::round_bf16;
  table.arrange = path_amx::arrange;
  table.arranged_rows = path_amx::MANY;
  return table;
}

}  // namespace

const KernelTable amx_kernels = amx_table();

}  // namespace puna
