// divergence over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include "tensors.h"

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct DivergenceLaunchers {
  void (*forward)(const DivergenceForwardArguments&);
  void (*backward)(const DivergenceBackwardArguments&);
};

// Arguments and results are those of the schemas in library.cpp. Raise TypeError or ValueError, naming the argument.
std::tuple<Tensor, Tensor> divergence_forward(const DivergenceLaunchers&, const Tensor& student, const Tensor& teacher,
                                              const MaybeTensor& ignore, int64_t kind, double beta, double temperature,
                                              const MaybeTensor& options, bool gradients);

Tensor divergence_backward(const DivergenceLaunchers&, const Tensor& value_grads, const Tensor& student, const Tensor& teacher,
                           const Tensor& saved, int64_t kind, double beta, double temperature,
                           const MaybeTensor& options);

template <const DivergenceLaunchers& kLaunchers>
void implement_divergence(torch::Library& library) {
  library.impl("divergence_forward", On<kLaunchers, &divergence_forward>::call);
  library.impl("divergence_backward", On<kLaunchers, &divergence_backward>::call);
}

}  // namespace abckd
