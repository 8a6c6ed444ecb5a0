// The block's shared arrays.
#pragma once
#include <cstddef>
#include <cstdint>

#include "memory.h"

namespace simt {

// Of the launch to come, which has this much dynamic shared memory.
void start_shared(std::size_t dynamic_bytes);
bool is_shared(std::uintptr_t address);
void judge_shared(std::uintptr_t address, std::size_t bytes, Access access, bool aligned, const void* pc);

}  // namespace simt
