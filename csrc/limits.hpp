// What this machine can do at most, for benchmarks to compare kernels with: bytes read a second, operations a second of
// the instructions that an instruction path multiplies with, and what it costs threads to meet.
//
// Each function runs a loop of nothing but that for about `seconds`, on `threads` threads pinned to a core each. Noise
// only ever lowers what is measured, so callers repeat it and take the best.
#pragma once

#include <cstddef>
#include <string>

namespace puna {

// Bytes a second that all threads together read from buffers of `bytes` in all, again and again: of the caches where
// they fit, of the memory where they do not.
double read_bytes_per_second(const std::string& path, int threads, size_t bytes, double seconds);

// Operations a second (a multiply-add counts as two) of all threads together. `kind`: "int8", "bf16" and "f32" are dot
// products and multiply-adds on vectors, "int8_tiles" and "bf16_tiles" those of AMX. 0 where path or processor has none.
double operations_per_second(const std::string& path, int threads, const std::string& kind, double seconds);

// Seconds from the last thread's arrival at a spinning barrier to the next: the least that any meeting can cost.
double barrier_seconds(int threads, double seconds);

// Seconds that handing an empty job to the core's own pool and waiting for its end take, within a step.
double dispatch_seconds(int threads, double seconds);

}  // namespace puna
