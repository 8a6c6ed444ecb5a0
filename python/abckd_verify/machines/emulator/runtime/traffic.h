// Counts what warps ask of global memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "../include/simt.h"
#include "memory.h"

namespace simt {

Counters& counters_of(const std::string& kernel);

// At the start of a launch.
void start_requests();
void log_access(std::uintptr_t address, std::size_t bytes, Access access, const Caller& caller);
// Counts the requests that the logged accesses of one warp, or of all, make.
void close_requests(int warp);
void close_requests();

}  // namespace simt
