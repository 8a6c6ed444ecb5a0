// spectral over torch's tensors: checks, memory for the results, and how the bins lie.
#include "ops.h"

#include <cmath>

namespace abckd {
namespace {

// Pairs [..., band, frame, 2] that lie as [..., frame, band, 2], and not at the same time the other way.
bool is_bands_last(const Tensor& x) { return !x.is_contiguous() && x.transpose(-3, -2).is_contiguous(); }

Tensor laid_out_as(const Tensor& x, bool bands_last) {
  return bands_last ? x.transpose(-3, -2).contiguous().transpose(-3, -2) : x.contiguous();
}

void check(const Tensor& student, const Tensor& teacher, double exponent, double eps) {
  TORCH_CHECK_VALUE((student.dim() == 4 || student.dim() == 5) && student.size(-1) == 2,
                    "student: expected pairs (B, F, T, 2) or (B, C, F, T, 2), got ", student.sizes());
  for (int64_t axis = 1; axis < student.dim(); ++axis) {
    TORCH_CHECK_VALUE(student.size(axis) > 0, "student: channels, bands and frames must not be zero, got ",
                      student.sizes());
  }
  check_shape("teacher", teacher, student.sizes());
  check_device("teacher", teacher, student.device());
  TORCH_CHECK_TYPE(teacher.scalar_type() == student.scalar_type(), "teacher: expected ", student.scalar_type(),
                   ", got ", teacher.scalar_type());
  TORCH_CHECK_VALUE(exponent > 0 && exponent <= 2, "exponent: expected a number above 0, at most 2, got ", exponent);
  TORCH_CHECK_VALUE(eps >= 1e-30 && std::isfinite(eps), "eps: expected a number above 0, at least 1e-30, got ", eps);
}

SpectralArguments describe(const Tensor& student, const Tensor& teacher, double exponent, double eps,
                           const Padding& padding) {
  SpectralArguments a{};
  a.dtype = dtype_of(student);
  a.batch = student.size(0);
  a.bins = c10::multiply_integers(student.sizes().slice(1)) / 2;
  a.frames = student.size(-2);
  a.inner = is_bands_last(student) ? student.size(-3) : 1;
  a.student = student.const_data_ptr();
  a.teacher = teacher.const_data_ptr();
  a.exponent = exponent;
  a.eps = eps;
  a.padding = padding;
  return a;
}

}  // namespace

std::tuple<Tensor, Tensor> spectral_forward(const Device& device, const Tensor& student, const Tensor& teacher,
                                            double exponent, double eps, const MaybeTensor& lengths,
                                            int64_t padded_length) {
  check(student, teacher, exponent, eps);
  const OnDeviceOf current(student);
  const Lengths valid(lengths, padded_length, student.size(0), student.device());
  const Tensor s = laid_out_as(student, is_bands_last(student)), t = laid_out_as(teacher, is_bands_last(student));
  SpectralArguments a = describe(s, t, exponent, eps, valid.padding);
  const auto options = student.options().dtype(accumulation_type(student.scalar_type()));
  const Tensor magnitude = at::empty({a.batch}, options), complex = at::empty({a.batch}, options);
  a.magnitude = magnitude.mutable_data_ptr();
  a.complex = complex.mutable_data_ptr();
  if (a.batch > 0) {
    const Tensor scratch = workspace(device.spectral_forward_workspace(a), student);
    a.workspace = scratch.mutable_data_ptr();
    device.spectral_forward(a);
  }
  return {magnitude, complex};
}

Tensor spectral_backward(const Device& device, const Tensor& magnitude_grads, const Tensor& complex_grads,
                         const Tensor& student, const Tensor& teacher, double exponent, double eps,
                         const MaybeTensor& lengths, int64_t padded_length) {
  check(student, teacher, exponent, eps);
  const OnDeviceOf current(student);
  const Lengths valid(lengths, padded_length, student.size(0), student.device());
  const Tensor s = laid_out_as(student, is_bands_last(student)), t = laid_out_as(teacher, is_bands_last(student));
  SpectralArguments a = describe(s, t, exponent, eps, valid.padding);
  const auto accumulated = [&](const char* name, const Tensor& grads) {
    check_shape(name, grads, {a.batch});
    check_device(name, grads, student.device());
    return grads.to(accumulation_type(student.scalar_type())).contiguous();
  };
  const Tensor magnitude = accumulated("magnitude_grads", magnitude_grads);
  const Tensor complex = accumulated("complex_grads", complex_grads);
  const Tensor result = empty_as(s);
  a.magnitude = const_cast<void*>(magnitude.const_data_ptr());
  a.complex = const_cast<void*>(complex.const_data_ptr());
  a.result = result.mutable_data_ptr();
  if (a.batch > 0) device.spectral_backward(a);
  return result;
}

}  // namespace abckd
