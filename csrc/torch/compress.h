// compress over torch's tensors, whatever the device: a device is a table of launchers.
#pragma once
#include "tensors.h"

namespace abckd {

// What runs on a device; pointers are of that device, which is the current one during the call.
struct CompressLaunchers {
  int64_t most_maps;  // of both networks together; 0: no limit
  int64_t (*forward_workspace)(const CompressArguments&);  // bytes
  void (*forward)(const CompressArguments&);
  void (*backward)(const CompressBackwardArguments&);
};

// Arguments and results are those of the schemas in library.cpp. Raise TypeError or ValueError, naming the argument.
std::tuple<Tensor, Tensor, Tensor, Tensor> compress_forward(const CompressLaunchers&, at::TensorList student_maps,
                                                            at::TensorList teacher_maps, const MaybeTensor& scores,
                                                            const MaybeTensor& mask, at::IntArrayRef grid, bool per_frame,
                                                            double temperature, const MaybeTensor& lengths,
                                                            int64_t padded_length, bool gradients);

std::tuple<std::vector<Tensor>, Tensor> compress_backward(const CompressLaunchers&, const MaybeTensor& grad_distances,
                                                          const MaybeTensor& grad_attention, const Tensor& attention,
                                                          const Tensor& attention_grads, const Tensor& map_grads,
                                                          at::IntArrayRef sizes, const MaybeTensor& lengths,
                                                          int64_t padded_length, c10::List<bool> needed);

template <const CompressLaunchers& kLaunchers>
void implement_compress(torch::Library& library) {
  library.impl("compress_forward", On<kLaunchers, &compress_forward>::call);
  library.impl("compress_backward", On<kLaunchers, &compress_backward>::call);
}

}  // namespace abckd
