// The CPU kernels behind the dispatcher's ops, whose schemas are in abckd_kernels/ops.
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

// CPU kernels have their scratch memory on their threads' heaps.
constexpr TapLaunchers kTap{
    [](const TapArguments&, const TapLayer*, int64_t) -> int64_t { return 0; },
    [](const TapArguments& a, const TapLayer* layers, int64_t count) {
      cpu::kernels().tap_forward(a, layers, count, torch_threads());
    },
    [](const TapArguments& a, const TapBackwardLayer* layers, int64_t count) {
      cpu::kernels().tap_backward(a, layers, count, torch_threads());
    },
};

constexpr CompressLaunchers kCompress{
    0,
    [](const CompressArguments&) -> int64_t { return 0; },
    [](const CompressArguments& a) { cpu::kernels().compress_forward(a, torch_threads()); },
    [](const CompressBackwardArguments& a) { cpu::kernels().compress_backward(a, torch_threads()); },
};

constexpr PointwiseLaunchers kPointwise{
    [](const PointwiseArguments& a) { cpu::kernels().pointwise_forward(a, torch_threads()); },
    [](const PointwiseBackwardArguments& a) { cpu::kernels().pointwise_backward(a, torch_threads()); },
};

constexpr GramLaunchers kGram{
    [](const GramArguments& a) { cpu::kernels().gram_forward(a, torch_threads()); },
    [](const GramBackwardArguments& a) { cpu::kernels().gram_backward(a, torch_threads()); },
};

constexpr SpectralLaunchers kSpectral{
    [](const SpectralArguments&) -> int64_t { return 0; },
    [](const SpectralArguments& a) { cpu::kernels().spectral_forward(a, torch_threads()); },
    [](const SpectralArguments& a) { cpu::kernels().spectral_backward(a, torch_threads()); },
};

constexpr DivergenceLaunchers kDivergence{
    [](const DivergenceForwardArguments& a) { cpu::kernels().divergence_forward(a, torch_threads()); },
    [](const DivergenceBackwardArguments& a) { cpu::kernels().divergence_backward(a, torch_threads()); },
};

constexpr ProjectLaunchers kProject{
    [](const ProjectArguments& a) { cpu::kernels().project_forward(a, torch_threads()); },
    [](const ProjectBackwardArguments& a) { cpu::kernels().project_backward(a, torch_threads()); },
};

constexpr DotsLaunchers kDots{
    [](const DotsArguments& a) { cpu::kernels().dots_forward(a, torch_threads()); },
    [](const DotsBackwardArguments& a) { cpu::kernels().dots_backward(a, torch_threads()); },
};

}  // namespace

TORCH_LIBRARY_IMPL(abckd, CPU, library) {
  implement_tap<kTap>(library);
  implement_compress<kCompress>(library);
  implement_pointwise<kPointwise>(library);
  implement_gram<kGram>(library);
  implement_spectral<kSpectral>(library);
  implement_divergence<kDivergence>(library);
  implement_project<kProject>(library);
  implement_dots<kDots>(library);
}
