// dots over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include "tensors.h"

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct DotsLaunchers {
  void (*forward)(const DotsArguments&);
  void (*backward)(const DotsBackwardArguments&);
};

// Arguments and results are those of the schemas in library.cpp. Raise TypeError or ValueError, naming the argument.
Tensor dots_forward(const DotsLaunchers&, const Tensor& x, const Tensor& y);

std::tuple<Tensor, Tensor> dots_backward(const DotsLaunchers&, const Tensor& grad_products, const Tensor& x, const Tensor& y,
                                         c10::List<bool> needed);

template <const DotsLaunchers& kLaunchers>
void implement_dots(torch::Library& library) {
  library.impl("dots_forward", On<kLaunchers, &dots_forward>::call);
  library.impl("dots_backward", On<kLaunchers, &dots_backward>::call);
}

}  // namespace abckd
