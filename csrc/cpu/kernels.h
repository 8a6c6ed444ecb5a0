// The CPU kernels' table. Each instruction set has one table of functions (isa_*.cpp), `kernels()` picks the best that this
// processor runs. Nothing here knows torch.
#pragma once
#include "abckd/arguments.h"

#include "parallel.h"

namespace abckd::cpu {

struct Kernels {
  const char* isa;
  void (*tap_forward)(const TapArguments&, const TapLayer*, int64_t layers, Threads);
  void (*tap_backward)(const TapArguments&, const TapBackwardLayer*, int64_t layers, Threads);
  void (*compress_forward)(const CompressArguments&, Threads);
  void (*compress_backward)(const CompressBackwardArguments&, Threads);
  void (*divergence_forward)(const DivergenceForwardArguments&, Threads);
  void (*divergence_backward)(const DivergenceBackwardArguments&, Threads);
  void (*dots_forward)(const DotsArguments&, Threads);
  void (*dots_backward)(const DotsBackwardArguments&, Threads);
  void (*gram_forward)(const GramArguments&, Threads);
  void (*gram_backward)(const GramBackwardArguments&, Threads);
  void (*pointwise_forward)(const PointwiseArguments&, Threads);
  void (*pointwise_backward)(const PointwiseBackwardArguments&, Threads);
  void (*project_forward)(const ProjectArguments&, Threads);
  void (*project_backward)(const ProjectBackwardArguments&, Threads);
  void (*spectral_forward)(const SpectralArguments&, Threads);
  void (*spectral_backward)(const SpectralArguments&, Threads);
};

const Kernels& kernels();

}  // namespace abckd::cpu
