// tap over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include "tensors.h"

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct TapLaunchers {
  int64_t (*forward_workspace)(const TapArguments&, const TapLayer*, int64_t layers);  // bytes
  void (*forward)(const TapArguments&, const TapLayer*, int64_t layers);
  void (*backward)(const TapArguments&, const TapBackwardLayer*, int64_t layers);
};

// Arguments and results are those of the schemas in abckd_kernels/ops. Raise TypeError or ValueError, naming the argument.
std::tuple<std::vector<Tensor>, std::vector<Tensor>> tap_forward(const TapLaunchers&, at::TensorList features, int64_t power,
                                                                 bool means, const MaybeTensor& lengths, int64_t padded_length);

std::vector<Tensor> tap_backward(const TapLaunchers&, const OptionalTensors& grads, at::TensorList features,
                                 const OptionalTensors& map_grads, const OptionalTensors& mean_grads, int64_t power,
                                 const MaybeTensor& lengths, int64_t padded_length);

template <const TapLaunchers& kLaunchers>
void implement_tap(torch::Library& library) {
  library.impl("tap_forward", On<kLaunchers, &tap_forward>::call);
  library.impl("tap_backward", On<kLaunchers, &tap_backward>::call);
}

}  // namespace abckd
