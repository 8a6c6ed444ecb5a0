// CUDA as a device: its kernels on torch's current stream, and launch errors as exceptions. Built with csrc/cuda only.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "../cuda/kernels.h"
#include "ops.h"

namespace {

using namespace abckd;

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void check(const char* kernel, cudaError_t status) {
  // CUDA's own words, "invalid configuration argument", would name no argument of ours.
  TORCH_CHECK_VALUE(status != cudaErrorInvalidConfiguration, kernel,
                    ": the tensors are too large: they take more blocks than a CUDA launch can have");
  C10_CUDA_CHECK(status);
}

constexpr Device kDevice{
    .most_maps = kMostMaps,
#define ABCKD_ENTRY(kernel, Arguments) \
  .kernel = [](const Arguments& a) { check(#kernel, cuda::kernel(a, stream())); },
    ABCKD_CUDA_KERNELS(ABCKD_ENTRY)
#define ABCKD_WORKSPACE(kernel, Arguments) .kernel##_workspace = cuda::kernel##_workspace,
    ABCKD_KERNELS_WITH_WORKSPACE(ABCKD_WORKSPACE)
};

}  // namespace

TORCH_LIBRARY_IMPL(abckd, CUDA, library) { ABCKD_CUDA_KERNELS(ABCKD_REGISTER) }
