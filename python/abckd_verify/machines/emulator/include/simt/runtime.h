// What the device headers ask of the runtime. Its sources are compiled without instrumentation; these headers become
// part of the instrumented kernels, so they leave every access of memory that is not a local to a function below.
#pragma once
#include <cstddef>
#include <cstdint>

#include "vectors.h"

namespace simt {

// Where a call stands in the source. As a default argument, `Place::here()` is the place of the call.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// One access of `bytes` bytes, checked and counted as such; the other pointer is a local of the thread.
void load(const void* from, void* to, std::size_t bytes);
void store(void* to, const void* from, std::size_t bytes);

// An atomic is atomic_load, which checks and counts, and atomic_store; nothing runs between the two.
void atomic_load(const void* from, void* to, std::size_t bytes);
void atomic_store(void* to, const void* from, std::size_t bytes);

void* shared_array(const char* name, const void* place, std::size_t bytes, std::size_t alignment);
void* dynamic_shared_array();

void sync_block(Place place);
void sync_warp(unsigned mask, Place place);
unsigned ballot(const char* operation, unsigned mask, bool predicate, Place place);
// The value of lane `source`, which must be in the mask; a source of its own is the lane's value.
std::uint64_t shuffle(const char* operation, unsigned mask, std::uint64_t value, int source, Place place);
int lane();

// What is launched: run(context) is one thread of it. The kernel's parameters lie in `context`.
struct Launch {
  const void* kernel;
  const char* text;  // the kernel as the launch spells it
  dim3 blocks, threads;
  std::size_t shared_bytes;
  void (*run)(void* context);
  void* context;
  std::size_t context_bytes;
};
void launch(const Launch& launch);

[[noreturn]] void refuse(const char* kernel, const char* reason);

}  // namespace simt
