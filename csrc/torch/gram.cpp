// gram over torch's tensors: checks, memory for the results, and where the rows of each axis lie.
#include "ops.h"

namespace abckd {
namespace {

Tensor channels_last(const Tensor& x) { return x.movedim(1, -1).contiguous().movedim(-1, 1); }

// As it lies if neighbours in a row of the axis are then neighbours in memory, else one copy (ops/gram: laid_out).
Tensor laid_out(const Tensor& x, std::string_view axis) {
  if (axis == "samples") return dense(x);
  if (axis == "channels") return x.contiguous();
  return x.dim() == 4 && x.size(3) > 1 ? dense(x) : is_channels_last(x) ? x : channels_last(x);
}

GramArguments rows_of(const Tensor& x, std::string_view axis, bool shifted) {
  const int64_t batch = x.size(0), channels = x.size(1), frames = x.dim() > 2 ? x.size(2) : 1,
                bands = x.dim() == 4 ? x.size(3) : 1, sample = channels * frames * bands;
  GramArguments a{dtype_of(x), x.const_data_ptr(), 1, batch, 1, sample, 0, sample, 0, shifted, nullptr};
  if (axis == "samples") return a;
  if (axis == "channels") {
    a.groups = batch, a.rows = channels, a.inner = frames * bands;
    a.group_stride = sample, a.row_stride = a.inner;
    return a;
  }
  const bool last = is_channels_last(x);
  const int64_t frame = last ? bands * channels : bands;
  a.outer = last ? 1 : channels, a.inner = frame, a.outer_stride = frames * bands;
  if (axis == "frames") {
    a.groups = batch, a.rows = frames, a.group_stride = sample, a.row_stride = frame;
  } else {
    a.groups = frames, a.group_stride = frame;
  }
  return a;
}

Tensor checked(const Tensor& x, std::string_view axis) {
  TORCH_CHECK_VALUE(axis == "samples" || axis == "channels" || axis == "frames" || axis == "samples_per_frame",
                    "axis: expected samples, channels, frames or samples_per_frame, got ", axis);
  TORCH_CHECK_VALUE(x.dim() == 3 || x.dim() == 4 || (x.dim() == 2 && axis == "samples"),
                    "x: expected (B, C, T) or (B, C, T, F), got ", x.sizes());
  for (int64_t i = 1; i < x.dim(); ++i) {
    TORCH_CHECK_VALUE(x.size(i) > 0, "x: sizes other than the batch must not be zero, got ", x.sizes());
  }
  return laid_out(x, axis);
}

}  // namespace

Tensor gram_forward(const Device& device, const Tensor& x, std::string_view axis, bool shifted) {
  const OnDeviceOf current(x);
  const Tensor input = checked(x, axis);
  GramArguments a = rows_of(input, axis, shifted);
  const Tensor grams = at::empty({a.groups, a.rows, a.rows}, x.options().dtype(at::kDouble));
  a.grams = grams.mutable_data_ptr<double>();
  if (grams.numel() > 0) device.gram_forward(a);
  return grams;
}

Tensor gram_backward(const Device& device, const Tensor& grad, const Tensor& x, std::string_view axis, bool shifted) {
  const OnDeviceOf current(x);
  const Tensor input = checked(x, axis);
  const GramArguments a = rows_of(input, axis, shifted);
  check_shape("grad", grad, {a.groups, a.rows, a.rows});
  check_device("grad", grad, x.device());
  const Tensor grads = grad.to(at::kDouble).contiguous(), result = empty_as(input);
  if (result.numel() > 0) device.gram_backward({a, grads.const_data_ptr<double>(), result.mutable_data_ptr()});
  return result;
}

}  // namespace abckd
