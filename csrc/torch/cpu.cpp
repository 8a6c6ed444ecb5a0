// The CPU as a device: its kernels on torch's threads.
#include <ATen/Parallel.h>

#include "../cpu/kernels.h"
#include "ops.h"

namespace {

using namespace abckd;

cpu::Threads torch_threads() {
  const auto run = [](int threads, void (*body)(void*), void* context) {
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(context);
    });
  };
  return {at::get_num_threads(), run};
}

constexpr Device kDevice{
    .most_maps = 0,
#define ABCKD_ENTRY(kernel, Arguments) \
  .kernel = [](const Arguments& a) { cpu::kernels().kernel(a, torch_threads()); },
    ABCKD_KERNELS(ABCKD_ENTRY)
// CPU kernels have their scratch memory on their threads' heaps.
#define ABCKD_WORKSPACE(kernel, Arguments) .kernel##_workspace = [](const Arguments&) -> int64_t { return 0; },
    ABCKD_KERNELS_WITH_WORKSPACE(ABCKD_WORKSPACE)
};

}  // namespace

TORCH_LIBRARY_IMPL(abckd, CPU, library) { ABCKD_KERNELS(ABCKD_REGISTER) }
