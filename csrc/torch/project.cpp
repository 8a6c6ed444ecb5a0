// project over torch's tensors: checks, memory for the results, and the pointers and sizes that launchers want.
#include "ops.h"

namespace abckd {
namespace {

// The tensors behind the arguments, alive as long as this.
struct Operands {
  Tensor student, weight, bias, attention;
  std::vector<Tensor> teachers;
  std::vector<ProjectFeature> features;
  Lengths valid;
  ProjectArguments arguments{};

  Operands(const Tensor& given, const Tensor& given_weight, at::TensorList given_teachers,
           const MaybeTensor& given_bias, const MaybeTensor& given_attention, const MaybeTensor& lengths,
           int64_t padded_length)
      : student(dense(given)), valid(lengths, padded_length, given.dim() > 0 ? given.size(0) : 0, given.device()) {
    TORCH_CHECK_VALUE(given.dim() == 3 || given.dim() == 4, "student: expected (B, C, T) or (B, C, T, F), got ",
                      given.sizes());
    TORCH_CHECK_VALUE(!given_teachers.empty(), "teachers: expected at least one");
    const auto type = accumulation_type(student.scalar_type());
    at::DimVector expected(student.sizes());
    expected[1] = given_teachers[0].dim() > 1 ? given_teachers[0].size(1) : 0;
    for (const Tensor& teacher : given_teachers) {
      check_shape("teachers", teacher, expected);
      check_device("teachers", teacher, student.device());
      TORCH_CHECK_TYPE(accumulation_type(teacher.scalar_type()) == type,
                       "teachers: expected float64 exactly if student is");
      features.push_back(feature_of(teachers.emplace_back(dense(teacher))));
    }
    const int64_t count = static_cast<int64_t>(teachers.size());
    TORCH_CHECK_VALUE(given_attention.has_value() || count == 1, "attention: expected a tensor for several teachers");
    const auto parameter = [&](const char* name, const Tensor& value, at::IntArrayRef shape) {
      check_shape(name, value, shape);
      check_device(name, value, student.device());
      return value.to(type).contiguous();
    };
    weight = parameter("weight", given_weight, {expected[1], student.size(1)});
    if (given_bias.has_value()) bias = parameter("bias", *given_bias, {expected[1]});
    if (given_attention.has_value()) attention = parameter("attention", *given_attention, {student.size(0), count});
    ProjectArguments& a = arguments;
    a.is_double = type == at::kDouble;
    a.batch = student.size(0);
    a.student_channels = student.size(1);
    a.teacher_channels = expected[1];
    a.frames = student.size(2);
    a.bands = student.dim() == 4 ? student.size(3) : 1;
    a.student = feature_of(student);
    a.teachers = features.data();
    a.teacher_count = count;
    a.weight = weight.const_data_ptr();
    a.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
    a.attention = attention.defined() ? attention.const_data_ptr() : nullptr;
    a.padding = valid.padding;
  }
  Operands(const Operands&) = delete;  // the arguments point into it

 private:
  static ProjectFeature feature_of(const Tensor& x) { return {x.const_data_ptr(), dtype_of(x), is_channels_last(x)}; }
};

}  // namespace

Tensor project_forward(const Device& device, const Tensor& student, const Tensor& weight, at::TensorList teachers,
                       const MaybeTensor& bias, const MaybeTensor& attention, const MaybeTensor& lengths,
                       int64_t padded_length) {
  const OnDeviceOf current(student);
  Operands operands(student, weight, teachers, bias, attention, lengths, padded_length);
  const Tensor errors = at::empty({student.size(0)}, operands.weight.options());
  operands.arguments.errors = errors.mutable_data_ptr();
  device.project_forward(operands.arguments);
  return errors;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> project_backward(const Device& device, const Tensor& error_grads,
                                                            const Tensor& student, const Tensor& weight,
                                                            at::TensorList teachers, const MaybeTensor& bias,
                                                            const MaybeTensor& attention, const MaybeTensor& lengths,
                                                            int64_t padded_length, c10::List<bool> needed) {
  const OnDeviceOf current(student);
  const Operands operands(student, weight, teachers, bias, attention, lengths, padded_length);
  TORCH_CHECK_VALUE(needed.size() == 4, "needed: expected 4 items, got ", needed.size());
  check_shape("error_grads", error_grads, {student.size(0)});
  check_device("error_grads", error_grads, student.device());
  const Tensor grads = error_grads.to(operands.weight.scalar_type()).contiguous();
  const ProjectArguments& a = operands.arguments;
  ProjectBackwardArguments backward{a, grads.const_data_ptr(), nullptr, nullptr, nullptr, nullptr};
  Tensor results[4];
  const auto make = [&](int index, void*& pointer, auto&& tensor) {
    results[index] = needed.get(index) ? tensor() : at::empty({0}, (index == 0 ? student : operands.weight).options());
    if (needed.get(index)) pointer = results[index].mutable_data_ptr();
  };
  const auto sums = [&](at::IntArrayRef shape) { return at::empty(shape, operands.weight.options()); };
  make(0, backward.student_grad, [&] { return empty_as(operands.student); });
  make(1, backward.weight_grad, [&] { return sums({a.teacher_channels, a.student_channels}); });
  make(2, backward.bias_grad, [&] { return sums({a.teacher_channels}); });
  make(3, backward.attention_grad, [&] { return sums({a.batch, a.teacher_count}); });
  device.project_backward(backward);
  return {results[0], results[1], results[2], results[3]};
}

}  // namespace abckd
