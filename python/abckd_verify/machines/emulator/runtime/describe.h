// How messages speak of accesses.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "memory.h"

namespace simt {

std::string byte_count(std::size_t bytes);                  // "4 bytes"
std::string describe(Access access, std::size_t bytes);     // "load of 4 bytes"
// "bytes 256..259 of 'x', which has 256"; bytes before the begin have negative numbers.
std::string range(std::uintptr_t address, std::size_t bytes, std::uintptr_t begin, std::size_t size, const std::string& of);

}  // namespace simt
