// Judges every access of a kernel: bounds, permission, alignment, initialisation, races.
#pragma once
#include <cstddef>
#include <cstdint>

#include "position.h"

namespace simt {

enum class Access : unsigned char { load, store, atomic };

// An access of the running thread. aligned: it is one access on the GPU too, and must be aligned to its size.
void judge(const void* address, std::size_t bytes, Access access, bool aligned, const Caller& caller);

int register_buffer(const char* name, const void* data, std::size_t bytes, bool writable);
void unregister_buffer(int id);

}  // namespace simt
