// Names of kernels and lines of source, from what the linker and the debug information know.
#pragma once
#include <string>

namespace simt {

// "tap_kernel<float, true>", without namespaces and parameters; for a kernel that is not exported, `text`.
std::string kernel_name(const void* kernel, const char* text);
// "tap.cuh:12" of the call that returns to pc; not of this emulator's headers, if they were inlined there.
std::string source_line(const void* pc);

}  // namespace simt
