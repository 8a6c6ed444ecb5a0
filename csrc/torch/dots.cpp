// dots over torch's tensors: checks, and memory for the results.
#include "ops.h"

namespace abckd {
namespace {

DotsArguments arguments_of(const Tensor& x, const Tensor& y) {
  const int64_t rows = x.size(0) * x.size(1);
  return {dtype_of(x), x.const_data_ptr(), y.const_data_ptr(), rows, rows > 0 ? x.numel() / rows : 0, nullptr};
}

void check(const Tensor& x, const Tensor& y) {
  TORCH_CHECK_VALUE(x.dim() >= 3, "x: expected (B, C, T) or (B, C, T, F), got ", x.sizes());
  check_shape("y", y, x.sizes());
  check_device("y", y, x.device());
  TORCH_CHECK_TYPE(x.scalar_type() == y.scalar_type(), "y: expected ", x.scalar_type(), " as of x, got ",
                   y.scalar_type());
}

}  // namespace

Tensor dots_forward(const Device& device, const Tensor& x, const Tensor& y) {
  check(x, y);
  const OnDeviceOf current(x);
  const Tensor rows = x.contiguous(), others = y.contiguous();
  const Tensor dots = at::empty({x.size(0), x.size(1), kDotProducts}, x.options().dtype(at::kDouble));
  DotsArguments a = arguments_of(rows, others);
  a.dots = dots.mutable_data_ptr<double>();
  if (dots.numel() > 0) device.dots_forward(a);
  return dots;
}

std::tuple<Tensor, Tensor> dots_backward(const Device& device, const Tensor& grad_products, const Tensor& x,
                                         const Tensor& y, c10::List<bool> needed) {
  check(x, y);
  check_shape("grad_products", grad_products, {x.size(0), x.size(1), kDotProducts});
  check_device("grad_products", grad_products, x.device());
  TORCH_CHECK_VALUE(needed.size() == 2, "needed: expected 2 items, got ", needed.size());
  const OnDeviceOf current(x);
  const Tensor rows = x.contiguous(), others = y.contiguous(), grads = grad_products.to(at::kDouble).contiguous();
  const auto result = [&](int index) { return needed.get(index) ? empty_as(rows) : at::empty({0}, x.options()); };
  const Tensor of_x = result(0), of_y = result(1);
  const auto pointer = [&](int index, const Tensor& grad) {
    return needed.get(index) ? grad.mutable_data_ptr() : nullptr;
  };
  if (rows.numel() > 0) {
    device.dots_backward(
        {arguments_of(rows, others), grads.const_data_ptr<double>(), pointer(0, of_x), pointer(1, of_y)});
  }
  return {of_x, of_y};
}

}  // namespace abckd
