// spectral over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include "tensors.h"

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct SpectralLaunchers {
  int64_t (*forward_workspace)(const SpectralArguments&);  // bytes
  void (*forward)(const SpectralArguments&);
  void (*backward)(const SpectralArguments&);
};

// Arguments and results are those of the schemas in abckd_kernels/ops. Raise TypeError or ValueError, naming the argument.
std::tuple<Tensor, Tensor> spectral_forward(const SpectralLaunchers&, const Tensor& student, const Tensor& teacher, double exponent,
                                            double eps, const MaybeTensor& lengths, int64_t padded_length);

Tensor spectral_backward(const SpectralLaunchers&, const Tensor& magnitude_grads, const Tensor& complex_grads,
                         const Tensor& student, const Tensor& teacher, double exponent, double eps, const MaybeTensor& lengths,
                         int64_t padded_length);

template <const SpectralLaunchers& kLaunchers>
void implement_spectral(torch::Library& library) {
  library.impl("spectral_forward", On<kLaunchers, &spectral_forward>::call);
  library.impl("spectral_backward", On<kLaunchers, &spectral_backward>::call);
}

}  // namespace abckd
