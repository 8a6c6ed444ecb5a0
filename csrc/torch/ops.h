// The ops over torch's tensors, whatever the device: a device is a table of launchers, and `implement` registers the ops for it.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "abckd/arguments.h"

namespace abckd {

using at::Tensor;
using OptionalTensors = c10::List<std::optional<Tensor>>;
using MaybeTensor = std::optional<Tensor>;

// What runs on a device; pointers are of that device, which is the current one during the call.
struct Launchers {
  int64_t most_maps;  // that compress takes, of both networks together; 0: no limit
  int64_t (*tap_forward_workspace)(const TapArguments&, const TapLayer*, int64_t layers);  // bytes
  void (*tap_forward)(const TapArguments&, const TapLayer*, int64_t layers);
  void (*tap_backward)(const TapArguments&, const TapBackwardLayer*, int64_t layers);
  int64_t (*compress_forward_workspace)(const CompressArguments&);  // bytes
  void (*compress_forward)(const CompressArguments&);
  void (*compress_backward)(const CompressBackwardArguments&);
};

// Arguments and results are those of the schemas in library.cpp. Raise TypeError or ValueError, naming the argument.
std::tuple<std::vector<Tensor>, std::vector<Tensor>> tap_forward(const Launchers&, at::TensorList features, int64_t power,
                                                                 bool means, const MaybeTensor& lengths, int64_t padded_length);

std::vector<Tensor> tap_backward(const Launchers&, const OptionalTensors& grads, at::TensorList features,
                                 const OptionalTensors& map_grads, const OptionalTensors& mean_grads, int64_t power,
                                 const MaybeTensor& lengths, int64_t padded_length);

std::tuple<Tensor, Tensor, Tensor, Tensor> compress_forward(const Launchers&, at::TensorList student_maps,
                                                            at::TensorList teacher_maps, const MaybeTensor& scores,
                                                            const MaybeTensor& mask, at::IntArrayRef grid, bool per_frame,
                                                            double temperature, const MaybeTensor& lengths,
                                                            int64_t padded_length, bool gradients);

std::vector<Tensor> compress_backward(const Launchers&, const Tensor& distance_grads, const Tensor& map_grads,
                                      at::IntArrayRef sizes, const MaybeTensor& lengths, int64_t padded_length);

// `op` with its first argument, the launchers, fixed.
template <const Launchers& kLaunchers, auto op>
struct On;

template <const Launchers& kLaunchers, typename Result, typename... Arguments, Result (*op)(const Launchers&, Arguments...)>
struct On<kLaunchers, op> {
  static Result call(Arguments... arguments) { return op(kLaunchers, arguments...); }
};

template <const Launchers& kLaunchers>
void implement(torch::Library& library) {
  library.impl("tap_forward", On<kLaunchers, &tap_forward>::call);
  library.impl("tap_backward", On<kLaunchers, &tap_backward>::call);
  library.impl("compress_forward", On<kLaunchers, &compress_forward>::call);
  library.impl("compress_backward", On<kLaunchers, &compress_backward>::call);
}

}  // namespace abckd
