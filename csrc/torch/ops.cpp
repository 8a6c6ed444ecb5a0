// Tensors to pointers: checks, memory for the results, and the table of pointers and sizes that the torch-free code wants.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

namespace abckd {
namespace {

// ---------------------------------------------------------------------------------------------- what all ops share

at::ScalarType accumulation_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", x.scalar_type());
  }
}

// Lies as [b, *spatial, c], and not at the same time as [b, c, *spatial].
bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && x.movedim(1, -1).is_contiguous(); }

Tensor dense(const Tensor& x) { return is_channels_last(x) ? x : x.contiguous(); }

// `x` in the memory order that `like` has.
Tensor dense_as(const Tensor& x, const Tensor& like) {
  return is_channels_last(like) ? x.movedim(1, -1).contiguous().movedim(-1, 1) : x.contiguous();
}

Tensor empty_as(const Tensor& x) { return at::empty_strided(x.sizes(), x.strides(), x.options()); }

void check_shape(const char* name, const Tensor& x, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(x.sizes() == shape, name, ": expected shape ", shape, ", got ", x.sizes());
}

void check_device(const char* name, const Tensor& x, at::Device device) {
  TORCH_CHECK_VALUE(x.device() == device, name, ": expected a tensor on ", device, ", got ", x.device());
}

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

// Makes the device of `x` the current one, as launches and memory on it need.
struct OnDeviceOf {
  c10::OptionalDeviceGuard guard;

  explicit OnDeviceOf(const Tensor& x) {
    if (!x.is_cpu()) guard.reset_device(x.device());
  }
};

// Keeps the int64 copy of `lengths` alive as long as kernels read it.
struct Lengths {
  Tensor values;
  Padding padding;

  Lengths(const MaybeTensor& lengths, int64_t padded_length, int64_t batch, at::Device device)
      : padding{nullptr, padded_length} {
    if (!lengths.has_value()) return;
    TORCH_CHECK_VALUE(lengths->dim() == 1 && lengths->size(0) == batch, "lengths: expected shape (", batch, "), got ",
                      lengths->sizes());
    check_device("lengths", *lengths, device);
    TORCH_CHECK_VALUE(padded_length > 0, "padded_length: expected a positive number, got ", padded_length);
    values = lengths->to(at::kLong).contiguous();
    padding.lengths = values.const_data_ptr<int64_t>();
  }
};

TapLayer layer_of(const Tensor& x) {
  return {x.const_data_ptr(), is_channels_last(x), x.size(1), x.size(2), x.dim() == 4 ? x.size(3) : 1, nullptr, nullptr};
}

// Scratch memory of a launch.
Tensor workspace(int64_t bytes, const Tensor& like) { return at::empty({bytes}, like.options().dtype(at::kByte)); }

// Calls launch(arguments, layers, count) once per dtype that occurs.
template <typename Layer, typename Launch>
void launch_by_dtype(const std::vector<Tensor>& features, const std::vector<Layer>& layers, int64_t power,
                     const Padding& padding, const Launch& launch) {
  TORCH_CHECK_VALUE(power == 1 || power == 2, "power: expected 1 or 2, got ", power);
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16}) {
    std::vector<Layer> same;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (dtype_of(features[i]) == dtype) same.push_back(layers[i]);
    }
    TapArguments arguments{dtype, static_cast<int>(power), features[0].size(0), padding, nullptr};
    if (!same.empty()) launch(arguments, same.data(), static_cast<int64_t>(same.size()));
  }
}

void check_count(int64_t maps, const Launchers& launchers) {
  TORCH_CHECK_VALUE(launchers.most_maps == 0 || maps <= launchers.most_maps, "maps: compress takes at most ",
                    launchers.most_maps, " student and teacher maps together on this device, got ", maps,
                    "; use_backend(\"triton\") has no such limit");
}

std::vector<Tensor> check_maps(at::TensorList maps, const Tensor& like) {
  std::vector<Tensor> result;
  for (const Tensor& map : maps) {
    TORCH_CHECK_VALUE(map.dim() == 3 && map.size(0) == like.size(0) && map.size(1) > 0 && map.size(2) > 0,
                      "maps: expected shape (", like.size(0), ", T, F), got ", map.sizes());
    TORCH_CHECK_TYPE(map.scalar_type() == like.scalar_type(), "maps: expected ", like.scalar_type(), ", got ",
                     map.scalar_type());
    check_device("maps", map, like.device());
    result.push_back(map.contiguous());
  }
  return result;
}

}  // namespace

// ---------------------------------------------------------------------------------------------- tap

std::tuple<std::vector<Tensor>, std::vector<Tensor>> tap_forward(const Launchers& launchers, at::TensorList features, int64_t power,
                                                                 bool means, const MaybeTensor& lengths, int64_t padded_length) {
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
  launch_by_dtype(inputs, layers, power, valid.padding, [&](TapArguments& a, const TapLayer* first, int64_t count) {
    const Tensor scratch = workspace(launchers.tap_forward_workspace(a, first, count), features[0]);
    a.workspace = scratch.mutable_data_ptr();
    launchers.tap_forward(a, first, count);
  });
  return {maps, channel_means};
}

std::vector<Tensor> tap_backward(const Launchers& launchers, const OptionalTensors& grads, at::TensorList features,
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
  launch_by_dtype(inputs, layers, power, valid.padding, launchers.tap_backward);
  return results;
}

// ---------------------------------------------------------------------------------------------- compress

std::tuple<Tensor, Tensor, Tensor, Tensor> compress_forward(const Launchers& launchers, at::TensorList student_maps,
                                                            at::TensorList teacher_maps, const MaybeTensor& scores,
                                                            const MaybeTensor& mask, at::IntArrayRef grid, bool per_frame,
                                                            double temperature, const MaybeTensor& lengths,
                                                            int64_t padded_length, bool gradients) {
  TORCH_CHECK_VALUE(!student_maps.empty() && !teacher_maps.empty(), "maps: expected at least one of each network");
  constexpr int64_t kMostCells = int64_t{1} << 31;
  TORCH_CHECK_VALUE(grid.size() == 2 && grid[0] > 0 && grid[1] > 0 && grid[0] < kMostCells / grid[1],
                    "grid: expected two positive sizes with a product below 2^31, got ", grid);
  check_count(student_maps.size() + teacher_maps.size(), launchers);
  const Tensor& like = student_maps[0];
  const OnDeviceOf current(like);
  TORCH_CHECK_TYPE(like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble,
                   "maps: expected float32 or float64, got ", like.scalar_type());
  const auto students = check_maps(student_maps, like), teachers = check_maps(teacher_maps, like);
  const int64_t batch = like.size(0), n = student_maps.size(), m = teacher_maps.size();
  const Lengths valid(lengths, padded_length, batch, like.device());
  const auto options = like.options();
  const Tensor distances = at::empty({batch, n}, options), attention = at::empty({batch, n, m}, options);
  const Tensor attention_grads = gradients ? at::empty({batch, n, m}, options) : at::empty({0}, options);
  const Tensor map_grads = gradients ? at::empty({batch, n, grid[0], grid[1]}, options) : at::empty({0}, options);

  const auto describe = [](const std::vector<Tensor>& maps) {
    std::vector<Map> result;
    for (const Tensor& map : maps) result.push_back({map.const_data_ptr(), map.size(1), map.size(2)});
    return result;
  };
  const auto student_table = describe(students), teacher_table = describe(teachers);
  Tensor given_scores, given_mask;
  if (scores.has_value()) {
    check_shape("scores", *scores, attention.sizes());
    check_device("scores", *scores, like.device());
    given_scores = scores->to(like.scalar_type()).contiguous();
  }
  if (mask.has_value()) {
    check_shape("mask", *mask, {n, m});
    check_device("mask", *mask, like.device());
    given_mask = mask->to(at::kBool).contiguous();
  }
  CompressArguments a{};
  a.is_double = like.scalar_type() == at::kDouble;
  a.batch = batch;
  a.students = n;
  a.teachers = m;
  a.student_maps = student_table.data();
  a.teacher_maps = teacher_table.data();
  a.scores = given_scores.defined() ? given_scores.const_data_ptr() : nullptr;
  a.mask = given_mask.defined() ? given_mask.const_data_ptr<bool>() : nullptr;
  a.grid_frames = grid[0];
  a.grid_bands = grid[1];
  a.per_frame = per_frame;
  a.temperature = temperature;
  a.padding = valid.padding;
  a.distances = distances.mutable_data_ptr();
  a.attention = attention.mutable_data_ptr();
  a.attention_grads = gradients ? attention_grads.mutable_data_ptr() : nullptr;
  a.map_grads = gradients ? map_grads.mutable_data_ptr() : nullptr;
  // An empty batch has no pointers worth testing for null.
  if (batch > 0) {
    const Tensor scratch = workspace(launchers.compress_forward_workspace(a), like);
    a.workspace = scratch.mutable_data_ptr();
    launchers.compress_forward(a);
  }
  return {distances, attention, attention_grads, map_grads};
}

std::vector<Tensor> compress_backward(const Launchers& launchers, const Tensor& distance_grads, const Tensor& map_grads,
                                      at::IntArrayRef sizes, const MaybeTensor& lengths, int64_t padded_length) {
  TORCH_CHECK_VALUE(map_grads.dim() == 4, "map_grads: expected (B, n, T, F), got ", map_grads.sizes(),
                    "; empty where forward ran with gradients=False");
  TORCH_CHECK_TYPE(map_grads.scalar_type() == at::kFloat || map_grads.scalar_type() == at::kDouble,
                   "map_grads: expected float32 or float64, got ", map_grads.scalar_type());
  const int64_t batch = map_grads.size(0), n = map_grads.size(1);
  check_count(n, launchers);
  check_shape("distance_grads", distance_grads, {batch, n});
  check_device("distance_grads", distance_grads, map_grads.device());
  TORCH_CHECK_VALUE(map_grads.size(2) > 0 && map_grads.size(3) > 0 && static_cast<int64_t>(sizes.size()) == 2 * n &&
                        std::all_of(sizes.begin(), sizes.end(), [](int64_t size) { return size > 0; }),
                    "sizes: expected two positive numbers per student map, got ", sizes);
  const OnDeviceOf current(map_grads);
  const Lengths valid(lengths, padded_length, batch, map_grads.device());
  const Tensor distances = distance_grads.to(map_grads.scalar_type()).contiguous(), maps = map_grads.contiguous();
  std::vector<Tensor> results;
  std::vector<MapGrad> table;
  for (int64_t i = 0; i < n; ++i) {
    results.push_back(at::empty({batch, sizes[2 * i], sizes[2 * i + 1]}, map_grads.options()));
    table.push_back({results.back().mutable_data_ptr(), sizes[2 * i], sizes[2 * i + 1]});
  }
  launchers.compress_backward({map_grads.scalar_type() == at::kDouble, batch, n, distances.const_data_ptr(),
                               maps.const_data_ptr(), map_grads.size(2), map_grads.size(3), valid.padding, table.data()});
  return results;
}

}  // namespace abckd
