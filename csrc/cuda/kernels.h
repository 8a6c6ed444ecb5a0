// The CUDA launchers. Pointers are of the current device; nothing waits for it, and nothing here knows torch.
// A launcher returns the launch's error; cudaErrorInvalidConfiguration if it takes more blocks than a launch can have.
#pragma once
#include <cuda_runtime.h>

#include "abckd/arguments.h"

namespace abckd::cuda {

#define ABCKD_DECLARE(kernel, Arguments) int64_t kernel##_workspace(const Arguments&);  // bytes
ABCKD_KERNELS_WITH_WORKSPACE(ABCKD_DECLARE)
#undef ABCKD_DECLARE

#define ABCKD_DECLARE(kernel, Arguments) cudaError_t kernel(const Arguments&, cudaStream_t);
ABCKD_CUDA_KERNELS(ABCKD_DECLARE)
#undef ABCKD_DECLARE

}  // namespace abckd::cuda
