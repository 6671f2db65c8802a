// The loops that limits.cpp times: one instruction, as often as the processor can. Which loop belongs to an instruction
// path is decided here; threads and clocks are not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace puna::loops {

// Reads `bytes`, a multiple of 512; what it returns depends on all of them.
using Read = uint64_t (*)(const uint8_t* from, size_t bytes);
// Does `turns` turns and returns the operations they were.
using Multiply = double (*)(int64_t turns);

Read read_of(const std::string& path);
// Null where the path, this processor or its operating system has no such instruction.
Multiply multiply_of(const std::string& path, const std::string& kind);

// Makes the compiler believe that somebody reads `value`.
inline void keep(uint64_t value) { asm volatile("" : : "r"(value)); }
void relax();

}  // namespace puna::loops

namespace puna {
using loops::relax;
}
