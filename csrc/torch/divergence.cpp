// divergence over torch's tensors: checks, and memory for the results.
#include "ops.h"

namespace abckd {
namespace {

// `student` and `teacher` contiguous; the caller keeps them alive.
DivergenceArguments describe(const Tensor& student, const Tensor& teacher, int64_t kind, double beta,
                             double temperature) {
  return {dtype_of(student), static_cast<DivergenceKind>(kind), beta, temperature, student.size(0), student.size(1),
          student.size(2),   student.const_data_ptr(),          teacher.const_data_ptr()};
}

void check(const Tensor& student, const Tensor& teacher, int64_t kind, double temperature) {
  TORCH_CHECK_VALUE(student.dim() == 3 && student.size(1) > 0, "student: expected (outer, classes, inner), got ",
                    student.sizes());
  check_shape("teacher", teacher, student.sizes());
  check_device("teacher", teacher, student.device());
  TORCH_CHECK_TYPE(teacher.scalar_type() == student.scalar_type(), "teacher: expected ", student.scalar_type(),
                   ", got ", teacher.scalar_type());
  TORCH_CHECK_VALUE(kind >= 0 && kind <= 2, "kind: expected 0, 1 or 2, got ", kind);
  TORCH_CHECK_VALUE(temperature > 0, "temperature: expected a positive number, got ", temperature);
}

// beta and temperature are in `options` where they change from call to call of compiled code.
void take(const MaybeTensor& options, double& beta, double& temperature) {
  if (!options.has_value()) return;
  TORCH_CHECK_VALUE(options->device().is_cpu() && options->scalar_type() == at::kDouble && options->is_contiguous() &&
                        options->numel() == 2,
                    "options: expected beta and temperature in float64 on the CPU");
  beta = options->const_data_ptr<double>()[0];
  temperature = options->const_data_ptr<double>()[1];
}

}  // namespace

std::tuple<Tensor, Tensor> divergence_forward(const Device& device, const Tensor& student, const Tensor& teacher,
                                              const MaybeTensor& ignore, int64_t kind, double beta, double temperature,
                                              const MaybeTensor& options, bool gradients) {
  take(options, beta, temperature);
  check(student, teacher, kind, temperature);
  const OnDeviceOf current(student);
  const int64_t rows = student.size(0) * student.size(2);
  const Tensor s = student.contiguous(), t = teacher.contiguous();
  DivergenceForwardArguments a{describe(s, t, kind, beta, temperature), nullptr, nullptr, nullptr};
  Tensor ignored;
  if (ignore.has_value()) {
    check_shape("ignore", *ignore, {rows});
    check_device("ignore", *ignore, student.device());
    ignored = ignore->to(at::kBool).contiguous();
    a.ignore = ignored.const_data_ptr<bool>();
  }
  const auto wide = student.options().dtype(accumulation_type(student.scalar_type()));
  const Tensor values = at::empty({rows}, wide);
  const Tensor saved = gradients ? at::empty({divergence_saved(a.of.kind), rows}, wide) : at::empty({0}, wide);
  a.values = values.mutable_data_ptr();
  a.saved = gradients ? saved.mutable_data_ptr() : nullptr;
  if (rows > 0) device.divergence_forward(a);
  return {values, saved};
}

Tensor divergence_backward(const Device& device, const Tensor& value_grads, const Tensor& student,
                           const Tensor& teacher, const Tensor& saved, int64_t kind, double beta, double temperature,
                           const MaybeTensor& options) {
  take(options, beta, temperature);
  check(student, teacher, kind, temperature);
  const OnDeviceOf current(student);
  const int64_t rows = student.size(0) * student.size(2);
  const at::ScalarType wide = accumulation_type(student.scalar_type());
  check_shape("value_grads", value_grads, {rows});
  check_device("value_grads", value_grads, student.device());
  check_shape("saved", saved, {divergence_saved(static_cast<DivergenceKind>(kind)), rows});
  check_device("saved", saved, student.device());
  TORCH_CHECK_TYPE(saved.scalar_type() == wide, "saved: expected ", wide, ", got ", saved.scalar_type());
  const Tensor s = student.contiguous(), t = teacher.contiguous(), kept = saved.contiguous();
  const Tensor grads = value_grads.to(wide).contiguous(), result = empty_as(s);
  if (rows > 0) {
    device.divergence_backward({describe(s, t, kind, beta, temperature), grads.const_data_ptr(), kept.const_data_ptr(),
                        result.mutable_data_ptr()});
  }
  return result;
}

}  // namespace abckd
