// pointwise over torch's tensors: checks, memory for the results, and the pointers and sizes that launchers want.
#include "ops.h"

namespace abckd {
namespace {

struct Named {
  std::string_view name;
  PointwiseKind kind;
  bool third, per_channel;  // what it takes beside student and teacher
};

constexpr Named kKinds[] = {
    {"squared", PointwiseKind::squared, false, false},
    {"power", PointwiseKind::power, false, false},
    {"rectified", PointwiseKind::rectified, false, false},
    {"boundary", PointwiseKind::boundary, false, false},
    {"margin", PointwiseKind::margin, false, true},
    {"heteroscedastic", PointwiseKind::heteroscedastic, true, false},
};

const Named& find(std::string_view name) {
  for (const Named& kind : kKinds) {
    if (kind.name == name) return kind;
  }
  TORCH_CHECK_VALUE(false, "kind: unknown name ", std::string(name));
}

// The operands in one layout, which is the student's; keeps alive what they point to.
struct Operands {
  Tensor student, teacher, third, per_channel;
  Lengths valid;
  PointwiseArguments arguments;

  Operands(const Tensor& given_student, const Tensor& given_teacher, const MaybeTensor& given_third,
           const MaybeTensor& given_per_channel, std::string_view name, double parameter, const MaybeTensor& lengths,
           int64_t padded_length)
      : student(dense(given_student)),
        valid(lengths, padded_length, given_student.dim() > 0 ? given_student.size(0) : 0, given_student.device()) {
    const Named& kind = find(name);
    TORCH_CHECK_VALUE(student.dim() == 3 || student.dim() == 4, "student: expected (B, C, T) or (B, C, T, F), got ",
                      student.sizes());
    for (int64_t axis = 1; axis < student.dim(); ++axis) {
      TORCH_CHECK_VALUE(student.size(axis) > 0, "student: channels and spatial sizes must not be zero, got ",
                        student.sizes());
    }
    TORCH_CHECK_VALUE(given_third.has_value() == kind.third, "third: not what kind ", std::string(name), " takes");
    TORCH_CHECK_VALUE(given_per_channel.has_value() == kind.per_channel, "per_channel: not what kind ",
                      std::string(name), " takes");
    teacher = laid_out("teacher", given_teacher);
    if (kind.third) third = laid_out("third", *given_third);
    if (kind.per_channel) {
      check_shape("per_channel", *given_per_channel, {student.size(1)});
      check_device("per_channel", *given_per_channel, student.device());
      per_channel = given_per_channel->to(accumulation_type(student.scalar_type())).contiguous();
    }
    const auto pointer = [](const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; };
    arguments = {dtype_of(student), kind.kind, parameter, student.size(0), is_channels_last(student), student.size(1),
                 student.size(2), student.dim() == 4 ? student.size(3) : 1, pointer(student), pointer(teacher),
                 pointer(third), pointer(per_channel), valid.padding, nullptr};
  }

 private:
  Tensor laid_out(const char* name, const Tensor& x) const {
    check_shape(name, x, student.sizes());
    check_device(name, x, student.device());
    return dense_as(x.to(student.scalar_type()), student);
  }
};

}  // namespace

Tensor pointwise_forward(const Device& device, const Tensor& student, const Tensor& teacher, const MaybeTensor& third,
                         const MaybeTensor& per_channel, std::string_view kind, double parameter,
                         const MaybeTensor& lengths, int64_t padded_length) {
  const OnDeviceOf current(student);
  Operands operands(student, teacher, third, per_channel, kind, parameter, lengths, padded_length);
  const auto options = student.options().dtype(accumulation_type(student.scalar_type()));
  const Tensor sums = at::empty({student.size(0), student.size(1)}, options);
  operands.arguments.sums = sums.mutable_data_ptr();
  device.pointwise_forward(operands.arguments);
  return sums;
}

std::tuple<Tensor, Tensor> pointwise_backward(const Device& device, const Tensor& grad, const Tensor& student,
                                              const Tensor& teacher, const MaybeTensor& third,
                                              const MaybeTensor& per_channel, std::string_view kind, double parameter,
                                              const MaybeTensor& lengths, int64_t padded_length) {
  const OnDeviceOf current(student);
  const Operands operands(student, teacher, third, per_channel, kind, parameter, lengths, padded_length);
  check_shape("grad", grad, {student.size(0), student.size(1)});
  check_device("grad", grad, student.device());
  const Tensor wide = grad.to(accumulation_type(student.scalar_type())).contiguous();
  const bool has_third = operands.third.defined();
  const Tensor of_student = empty_as(operands.student);
  const Tensor of_third = has_third ? empty_as(operands.student) : at::empty({0}, student.options());
  device.pointwise_backward({operands.arguments, wide.const_data_ptr(), of_student.mutable_data_ptr(),
                             has_third ? of_third.mutable_data_ptr() : nullptr});
  return {of_student, of_third};
}

}  // namespace abckd
