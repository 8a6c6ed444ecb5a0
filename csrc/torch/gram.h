// gram over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include <string_view>

#include "tensors.h"

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct GramLaunchers {
  void (*forward)(const GramArguments&);
  void (*backward)(const GramBackwardArguments&);
};

// Arguments and results are those of the schemas in abckd_kernels/ops. Raise TypeError or ValueError, naming the argument.
Tensor gram_forward(const GramLaunchers&, const Tensor& x, std::string_view axis, bool shifted);

Tensor gram_backward(const GramLaunchers&, const Tensor& grad, const Tensor& x, std::string_view axis, bool shifted);

template <const GramLaunchers& kLaunchers>
void implement_gram(torch::Library& library) {
  library.impl("gram_forward", On<kLaunchers, &gram_forward>::call);
  library.impl("gram_backward", On<kLaunchers, &gram_backward>::call);
}

}  // namespace abckd
