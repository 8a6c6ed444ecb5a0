// Every op over torch's tensors, whatever the device, and how a device registers the ops that it serves.
#pragma once
#include <string_view>

#include "tensors.h"

namespace abckd {

// A device: what launches each kernel on it. Pointers are of that device, which is the current one during the call.
// Null: the device does not serve it.
struct Device {
  int64_t most_maps;  // that compress takes, of both networks together; 0: no limit
#define ABCKD_ENTRY(kernel, Arguments) void (*kernel)(const Arguments&);
  ABCKD_KERNELS(ABCKD_ENTRY)
#undef ABCKD_ENTRY
#define ABCKD_WORKSPACE(kernel, Arguments) int64_t (*kernel##_workspace)(const Arguments&);  // bytes
  ABCKD_KERNELS_WITH_WORKSPACE(ABCKD_WORKSPACE)
#undef ABCKD_WORKSPACE
};

// The ops. Arguments and results are those of the schemas in abckd_kernels/ops: the dispatcher compares the types.
// They raise TypeError or ValueError, naming the argument.
std::tuple<std::vector<Tensor>, std::vector<Tensor>> tap_forward(const Device&, at::TensorList features, int64_t power,
                                                                 bool means, const MaybeTensor& lengths,
                                                                 int64_t padded_length);

std::vector<Tensor> tap_backward(const Device&, const OptionalTensors& grads, at::TensorList features,
                                 const OptionalTensors& map_grads, const OptionalTensors& mean_grads, int64_t power,
                                 const MaybeTensor& lengths, int64_t padded_length);

std::tuple<Tensor, Tensor, Tensor, Tensor> compress_forward(const Device&, at::TensorList student_maps,
                                                            at::TensorList teacher_maps, const MaybeTensor& scores,
                                                            const MaybeTensor& mask, at::IntArrayRef grid,
                                                            bool per_frame, double temperature,
                                                            const MaybeTensor& lengths, int64_t padded_length,
                                                            bool gradients);

std::tuple<std::vector<Tensor>, Tensor> compress_backward(const Device&, const MaybeTensor& grad_distances,
                                                          const MaybeTensor& grad_attention, const Tensor& attention,
                                                          const Tensor& attention_grads, const Tensor& map_grads,
                                                          at::IntArrayRef student_maps_sizes,
                                                          const MaybeTensor& lengths, int64_t padded_length,
                                                          c10::List<bool> needed);

std::tuple<Tensor, Tensor> divergence_forward(const Device&, const Tensor& student, const Tensor& teacher,
                                              const MaybeTensor& ignore, int64_t kind, double beta, double temperature,
                                              const MaybeTensor& options, bool gradients);

Tensor divergence_backward(const Device&, const Tensor& value_grads, const Tensor& student, const Tensor& teacher,
                           const Tensor& saved, int64_t kind, double beta, double temperature,
                           const MaybeTensor& options);

std::tuple<Tensor, Tensor> spectral_forward(const Device&, const Tensor& student, const Tensor& teacher,
                                            double exponent, double eps, const MaybeTensor& lengths,
                                            int64_t padded_length);

Tensor spectral_backward(const Device&, const Tensor& magnitude_grads, const Tensor& complex_grads,
                         const Tensor& student, const Tensor& teacher, double exponent, double eps,
                         const MaybeTensor& lengths, int64_t padded_length);

Tensor pointwise_forward(const Device&, const Tensor& student, const Tensor& teacher, const MaybeTensor& third,
                         const MaybeTensor& per_channel, std::string_view kind, double parameter,
                         const MaybeTensor& lengths, int64_t padded_length);

std::tuple<Tensor, Tensor> pointwise_backward(const Device&, const Tensor& grad_sums, const Tensor& student,
                                              const Tensor& teacher, const MaybeTensor& third,
                                              const MaybeTensor& per_channel, std::string_view kind, double parameter,
                                              const MaybeTensor& lengths, int64_t padded_length);

Tensor gram_forward(const Device&, const Tensor& x, std::string_view axis, bool shifted);

Tensor gram_backward(const Device&, const Tensor& grad, const Tensor& x, std::string_view axis, bool shifted);

Tensor project_forward(const Device&, const Tensor& student, const Tensor& weight, at::TensorList teachers,
                       const MaybeTensor& bias, const MaybeTensor& attention, const MaybeTensor& lengths,
                       int64_t padded_length);

std::tuple<Tensor, Tensor, Tensor, Tensor> project_backward(const Device&, const Tensor& error_grads,
                                                            const Tensor& student, const Tensor& weight,
                                                            at::TensorList teachers, const MaybeTensor& bias,
                                                            const MaybeTensor& attention, const MaybeTensor& lengths,
                                                            int64_t padded_length, c10::List<bool> needed);

Tensor dots_forward(const Device&, const Tensor& x, const Tensor& y);

std::tuple<Tensor, Tensor> dots_backward(const Device&, const Tensor& grad_products, const Tensor& x, const Tensor& y,
                                         c10::List<bool> needed);

// `op` with its first argument, the device, fixed.
template <const Device& kDevice, auto op>
struct On;

template <const Device& kDevice, typename Result, typename... Arguments, Result (*op)(const Device&, Arguments...)>
struct On<kDevice, op> {
  static Result call(Arguments... arguments) { return op(kDevice, arguments...); }
};

// For a list of kernels, inside TORCH_LIBRARY_IMPL(abckd, ..., library): kDevice serves them.
#define ABCKD_REGISTER(kernel, Arguments) library.impl(#kernel, On<kDevice, &abckd::kernel>::call);

}  // namespace abckd
