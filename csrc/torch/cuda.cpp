// The CUDA kernels behind the dispatcher's ops: current stream, and launch errors as exceptions. Built with csrc/cuda only.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "../cuda/kernels.h"
#include "ops.h"

namespace {

using namespace abckd;

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

constexpr TapLaunchers kTap{
    cuda::tap_forward_workspace,
    [](const TapArguments& a, const TapLayer* layers, int64_t count) {
      C10_CUDA_CHECK(cuda::tap_forward(a, layers, count, stream()));
    },
    [](const TapArguments& a, const TapBackwardLayer* layers, int64_t count) {
      C10_CUDA_CHECK(cuda::tap_backward(a, layers, count, stream()));
    },
};

constexpr CompressLaunchers kCompress{
    kMostMaps,
    cuda::compress_forward_workspace,
    [](const CompressArguments& a) { C10_CUDA_CHECK(cuda::compress_forward(a, stream())); },
    [](const CompressBackwardArguments& a) { C10_CUDA_CHECK(cuda::compress_backward(a, stream())); },
};

constexpr SpectralLaunchers kSpectral{
    cuda::spectral_forward_workspace,
    [](const SpectralArguments& a) { C10_CUDA_CHECK(cuda::spectral_forward(a, stream())); },
    [](const SpectralArguments& a) { C10_CUDA_CHECK(cuda::spectral_backward(a, stream())); },
};

constexpr DivergenceLaunchers kDivergence{
    [](const DivergenceForwardArguments& a) { C10_CUDA_CHECK(cuda::divergence_forward(a, stream())); },
    [](const DivergenceBackwardArguments& a) { C10_CUDA_CHECK(cuda::divergence_backward(a, stream())); },
};

}  // namespace

TORCH_LIBRARY_IMPL(abckd, CUDA, library) {
  implement_tap<kTap>(library);
  implement_compress<kCompress>(library);
  implement_spectral<kSpectral>(library);
  implement_divergence<kDivergence>(library);
}
