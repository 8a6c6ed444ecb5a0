// The CPU kernels' table. Each instruction set has one table of functions (isa_*.cpp), `kernels()` picks the best that this
// processor runs. Nothing here knows torch.
#pragma once
#include "abckd/arguments.h"

#include "parallel.h"

namespace abckd::cpu {

struct Kernels {
  const char* isa;
#define ABCKD_ENTRY(kernel, Arguments) void (*kernel)(const Arguments&, Threads);
  ABCKD_KERNELS(ABCKD_ENTRY)
#undef ABCKD_ENTRY
};

const Kernels& kernels();

}  // namespace abckd::cpu
