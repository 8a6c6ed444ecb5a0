// compress over torch's tensors: checks, memory for the results, and launchers' tables of pointers and sizes.
#include "ops.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

namespace abckd {
namespace {

void check_count(int64_t maps, const Device& device) {
  TORCH_CHECK_VALUE(device.most_maps == 0 || maps <= device.most_maps, "maps: compress takes at most ",
                    device.most_maps, " student and teacher maps together on this device, got ", maps,
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

std::tuple<Tensor, Tensor, Tensor, Tensor> compress_forward(const Device& device, at::TensorList student_maps,
                                                            at::TensorList teacher_maps, const MaybeTensor& scores,
                                                            const MaybeTensor& mask, at::IntArrayRef grid,
                                                            bool per_frame, double temperature,
                                                            const MaybeTensor& lengths, int64_t padded_length,
                                                            bool gradients) {
  TORCH_CHECK_VALUE(!student_maps.empty() && !teacher_maps.empty(), "maps: expected at least one of each network");
  constexpr int64_t kMostCells = int64_t{1} << 31;
  TORCH_CHECK_VALUE(grid.size() == 2 && grid[0] > 0 && grid[1] > 0 && grid[0] < kMostCells / grid[1],
                    "grid: expected two positive sizes with a product below 2^31, got ", grid);
  check_count(student_maps.size() + teacher_maps.size(), device);
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
    const Tensor scratch = workspace(device.compress_forward_workspace(a), like);
    a.workspace = scratch.mutable_data_ptr();
    device.compress_forward(a);
  }
  return {distances, attention, attention_grads, map_grads};
}

namespace {

// The gradients of the student maps: those of the grid, spread over the windows.
std::vector<Tensor> spread(const Device& device, const Tensor& distance_grads, const Tensor& map_grads,
                           at::IntArrayRef sizes, const MaybeTensor& lengths, int64_t padded_length) {
  TORCH_CHECK_VALUE(map_grads.dim() == 4, "map_grads: expected (B, n, T, F), got ", map_grads.sizes(),
                    "; empty where forward ran with gradients=False");
  TORCH_CHECK_TYPE(map_grads.scalar_type() == at::kFloat || map_grads.scalar_type() == at::kDouble,
                   "map_grads: expected float32 or float64, got ", map_grads.scalar_type());
  const int64_t batch = map_grads.size(0), n = map_grads.size(1);
  check_count(n, device);
  check_shape("grad_distances", distance_grads, {batch, n});
  check_device("grad_distances", distance_grads, map_grads.device());
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
  device.compress_backward({map_grads.scalar_type() == at::kDouble, batch, n, distances.const_data_ptr(),
                            maps.const_data_ptr(), map_grads.size(2), map_grads.size(3), valid.padding, table.data()});
  return results;
}

// Of the scores, through the attention and through the distances. Small: (B, n, m).
Tensor score_gradients(const MaybeTensor& grad_distances, const MaybeTensor& grad_attention, const Tensor& attention,
                       const Tensor& attention_grads) {
  Tensor total = grad_attention.has_value() ? *grad_attention : at::zeros_like(attention);
  if (grad_distances.has_value()) total = total + grad_distances->unsqueeze(-1) * attention_grads;
  total = total.masked_fill(attention == 0, 0);  // the derivative of an entropy is infinite there
  return attention * (total - (attention * total).sum(-1, /*keepdim=*/true));
}

}  // namespace

std::tuple<std::vector<Tensor>, Tensor> compress_backward(const Device& device, const MaybeTensor& grad_distances,
                                                          const MaybeTensor& grad_attention, const Tensor& attention,
                                                          const Tensor& attention_grads, const Tensor& map_grads,
                                                          at::IntArrayRef sizes, const MaybeTensor& lengths,
                                                          int64_t padded_length, c10::List<bool> needed) {
  TORCH_CHECK_VALUE(needed.size() == 2, "needed: expected 2 items, got ", needed.size());
  std::vector<Tensor> maps;
  if (needed.get(0) && grad_distances.has_value()) {
    maps = spread(device, *grad_distances, map_grads, sizes, lengths, padded_length);
  }
  const Tensor scores = needed.get(1) ? score_gradients(grad_distances, grad_attention, attention, attention_grads)
                                      : at::empty({0}, attention.options());
  return {maps, scores};
}

}  // namespace abckd
