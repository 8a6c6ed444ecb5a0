// tap over torch's tensors: checks, memory for the results, and the tables of pointers and sizes that launchers want.
#include "ops.h"

namespace abckd {
namespace {

void check_feature(const Tensor& x, const Tensor& first) {
  TORCH_CHECK_VALUE(x.dim() == 3 || x.dim() == 4, "features: expected (B, C, T) or (B, C, T, F), got ", x.sizes());
  for (int64_t axis = 1; axis < x.dim(); ++axis) {
    TORCH_CHECK_VALUE(x.size(axis) > 0, "features: channels and spatial sizes must not be zero, got ", x.sizes());
  }
  check_device("features", x, first.device());
  TORCH_CHECK_VALUE(x.size(0) == first.size(0), "features: batch sizes differ, ", first.size(0), " and ", x.size(0));
}

at::DimVector map_shape(const Tensor& feature) {
  at::DimVector shape(feature.sizes());
  shape.erase(shape.begin() + 1);
  return shape;
}

TapLayer layer_of(const Tensor& x) {
  const int64_t bands = x.dim() == 4 ? x.size(3) : 1;
  return {x.const_data_ptr(), is_channels_last(x), x.size(1), x.size(2), bands, nullptr, nullptr};
}

// Calls launch(arguments) once per dtype that occurs.
template <typename Layer, typename Launch>
void launch_by_dtype(const std::vector<Tensor>& features, const std::vector<Layer>& layers, int64_t power,
                     const Padding& padding, const Launch& launch) {
  TORCH_CHECK_VALUE(power == 1 || power == 2, "power: expected 1 or 2, got ", power);
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16}) {
    std::vector<Layer> same;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (dtype_of(features[i]) == dtype) same.push_back(layers[i]);
    }
    TapArguments<Layer> arguments{dtype,   static_cast<int>(power), features[0].size(0),
                                  padding, same.data(),             static_cast<int64_t>(same.size()),
                                  nullptr};
    if (!same.empty()) launch(arguments);
  }
}

}  // namespace

std::tuple<std::vector<Tensor>, std::vector<Tensor>> tap_forward(const Device& device, at::TensorList features,
                                                                 int64_t power, bool means, const MaybeTensor& lengths,
                                                                 int64_t padded_length) {
  TORCH_CHECK_VALUE(!features.empty(), "features: expected at least one");
  const OnDeviceOf current(features[0]);
  std::vector<Tensor> maps, channel_means, inputs;
  const Lengths valid(lengths, padded_length, features[0].size(0), features[0].device());
  std::vector<TapLayer> layers;
  for (const Tensor& feature : features) {
    check_feature(feature, features[0]);
    inputs.push_back(dense(feature));
    const auto options = feature.options().dtype(accumulation_type(feature.scalar_type()));
    maps.push_back(at::empty(map_shape(feature), options));
    layers.push_back(layer_of(inputs.back()));
    layers.back().map = maps.back().mutable_data_ptr();
    if (means) {
      channel_means.push_back(at::empty({feature.size(0), feature.size(1)}, options));
      layers.back().mean = channel_means.back().mutable_data_ptr();
    }
  }
  launch_by_dtype(inputs, layers, power, valid.padding, [&](TapArguments<TapLayer>& a) {
    const Tensor scratch = workspace(device.tap_forward_workspace(a), features[0]);
    a.workspace = scratch.mutable_data_ptr();
    device.tap_forward(a);
  });
  return {maps, channel_means};
}

std::vector<Tensor> tap_backward(const Device& device, const OptionalTensors& grads, at::TensorList features,
                                 const OptionalTensors& map_grads, const OptionalTensors& mean_grads, int64_t power,
                                 const MaybeTensor& lengths, int64_t padded_length) {
  TORCH_CHECK_VALUE(!features.empty(), "features: expected at least one");
  TORCH_CHECK_VALUE(grads.size() == features.size() && map_grads.size() == features.size() &&
                        mean_grads.size() == features.size(),
                    "tap_backward: expected one gradient of each kind per feature, or None");
  const OnDeviceOf current(features[0]);
  std::vector<Tensor> results, inputs, alive;
  const Lengths valid(lengths, padded_length, features[0].size(0), features[0].device());
  std::vector<TapBackwardLayer> layers;
  for (size_t i = 0; i < features.size(); ++i) {
    check_feature(features[i], features[0]);
    const Tensor& x = inputs.emplace_back(dense(features[i]));
    const auto keep = [&](const Tensor& value) -> void* {
      return alive.emplace_back(value).data_ptr();
    };
    const auto given = [&](const char* name, const OptionalTensors& values, at::IntArrayRef shape) {
      const MaybeTensor value = values.get(i);
      if (value.has_value()) check_shape(name, *value, shape);
      if (value.has_value()) check_device(name, *value, x.device());
      return value;
    };
    const auto accumulated = [&](const char* name, const OptionalTensors& values, at::IntArrayRef shape) -> void* {
      const MaybeTensor value = given(name, values, shape);
      return value.has_value() ? keep(value->to(accumulation_type(x.scalar_type())).contiguous()) : nullptr;
    };
    TapBackwardLayer layer{layer_of(x), nullptr, nullptr};
    layer.layer.map = accumulated("map_grads", map_grads, map_shape(x));
    layer.layer.mean = accumulated("mean_grads", mean_grads, x.sizes().slice(0, 2));
    const MaybeTensor grad = given("grads", grads, x.sizes());
    if (grad.has_value()) layer.grad = keep(dense_as(grad->to(x.scalar_type()), x));
    results.push_back(empty_as(x));
    layer.result = results.back().mutable_data_ptr();
    layers.push_back(layer);
  }
  launch_by_dtype(inputs, layers, power, valid.padding, device.tap_backward);
  return results;
}

}  // namespace abckd
