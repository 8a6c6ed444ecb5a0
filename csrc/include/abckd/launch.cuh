// The three things that CUDA writes outside of C++, as macros: whoever compiles kernels for something else than a GPU defines
// them first (the emulator of python/abckd_verify does, for the host).
#pragma once
#include <cuda_runtime.h>

#ifndef ABCKD_LAUNCH

#define ABCKD_UNPARENTHESISED(...) __VA_ARGS__
// kernel in parentheses, because template arguments hold commas.
#define ABCKD_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  ABCKD_UNPARENTHESISED kernel<<<(blocks), (threads), (shared_bytes), (stream)>>>(__VA_ARGS__)

#define ABCKD_SHARED(type, name, count) __shared__ type name[count]

// One symbol of one type for all kernels: the linker knows dynamic shared memory by name.
#define ABCKD_DYNAMIC_SHARED(type, name)             \
  extern __shared__ double abckd_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(abckd_dynamic_shared)

#endif
