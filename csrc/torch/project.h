// project over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include "tensors.h"

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct ProjectLaunchers {
  void (*forward)(const ProjectArguments&);
  void (*backward)(const ProjectBackwardArguments&);
};

// Arguments and results are those of the schemas in library.cpp. Raise TypeError or ValueError, naming the argument.
Tensor project_forward(const ProjectLaunchers&, const Tensor& student, const Tensor& weight, at::TensorList teachers,
                       const MaybeTensor& bias, const MaybeTensor& attention, const MaybeTensor& lengths, int64_t padded_length);

std::tuple<Tensor, Tensor, Tensor, Tensor> project_backward(const ProjectLaunchers&, const Tensor& error_grads, const Tensor& student,
                                                            const Tensor& weight, at::TensorList teachers, const MaybeTensor& bias,
                                                            const MaybeTensor& attention, const MaybeTensor& lengths,
                                                            int64_t padded_length, c10::List<bool> needed);

template <const ProjectLaunchers& kLaunchers>
void implement_project(torch::Library& library) {
  library.impl("project_forward", On<kLaunchers, &project_forward>::call);
  library.impl("project_backward", On<kLaunchers, &project_backward>::call);
}

}  // namespace abckd
