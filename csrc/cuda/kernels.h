// The CUDA launchers. Pointers are of the current device; nothing waits for it, and nothing here knows torch. A launcher returns the
// launch's error; cudaErrorInvalidConfiguration if something is larger than a launch can be.
#pragma once
#include <cuda_runtime.h>

#include "abckd/arguments.h"

namespace abckd::cuda {

int64_t tap_forward_workspace(const TapArguments&, const TapLayer*, int64_t layers);
cudaError_t tap_forward(const TapArguments&, const TapLayer*, int64_t layers, cudaStream_t);
cudaError_t tap_backward(const TapArguments&, const TapBackwardLayer*, int64_t layers, cudaStream_t);

int64_t compress_forward_workspace(const CompressArguments&);
cudaError_t compress_forward(const CompressArguments&, cudaStream_t);
cudaError_t compress_backward(const CompressBackwardArguments&, cudaStream_t);

int64_t spectral_forward_workspace(const SpectralArguments&);
cudaError_t spectral_forward(const SpectralArguments&, cudaStream_t);
cudaError_t spectral_backward(const SpectralArguments&, cudaStream_t);

cudaError_t divergence_forward(const DivergenceForwardArguments&, cudaStream_t);
cudaError_t divergence_backward(const DivergenceBackwardArguments&, cudaStream_t);

}  // namespace abckd::cuda
