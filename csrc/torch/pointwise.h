// pointwise over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include "tensors.h"

#include <string_view>

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct PointwiseLaunchers {
  void (*forward)(const PointwiseArguments&);
  void (*backward)(const PointwiseBackwardArguments&);
};

// Arguments and results are those of the schemas in library.cpp. Raise TypeError or ValueError, naming the argument.
Tensor pointwise_forward(const PointwiseLaunchers&, const Tensor& student, const Tensor& teacher, const MaybeTensor& third,
                         const MaybeTensor& per_channel, std::string_view kind, double parameter, const MaybeTensor& lengths,
                         int64_t padded_length);

std::tuple<Tensor, Tensor> pointwise_backward(const PointwiseLaunchers&, const Tensor& grad, const Tensor& student, const Tensor& teacher,
                                       const MaybeTensor& third, const MaybeTensor& per_channel, std::string_view kind,
                                       double parameter, const MaybeTensor& lengths, int64_t padded_length);

template <const PointwiseLaunchers& kLaunchers>
void implement_pointwise(torch::Library& library) {
  library.impl("pointwise_forward", On<kLaunchers, &pointwise_forward>::call);
  library.impl("pointwise_backward", On<kLaunchers, &pointwise_backward>::call);
}

}  // namespace abckd
