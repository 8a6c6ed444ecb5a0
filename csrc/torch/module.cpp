// The pybind11 module: the ops with their derivatives, for eager calls that skip the dispatcher's Python layers.
//
// Both functions call the dispatcher's ops, so any backend may serve them, and mirror the Python forms in abckd_kernels/ops,
// which torch.compile traces instead.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"

namespace py = pybind11;

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using OptionalTensors = c10::List<MaybeTensor>;

template <typename Signature>
auto dispatched(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

// Gradients that can't be differentiated again: an attempt says so, instead of ending the graph in silence.
struct Refuse : torch::autograd::Function<Refuse> {
  static Tensor forward(AutogradContext*, const Tensor& gradient) { return gradient; }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false, "second derivatives of abckd_kernels' ops don't exist");
  }
};

// Runs first_derivative(context, grads) of F, outside autograd.
template <typename F>
variable_list once_differentiable(AutogradContext* context, const variable_list& grads) {
  const bool recording = at::GradMode::is_enabled();
  variable_list results;
  {
    const at::NoGradGuard no_grad;
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    results = F::first_derivative(context, grads);
  }
  for (Tensor& result : results) {
    if (recording && result.defined()) result = Refuse::apply(result.detach().requires_grad_());
  }
  return results;
}

// ---------------------------------------------------------------------------------------------- tap

std::tuple<std::vector<Tensor>, std::vector<Tensor>> call_tap_forward(at::TensorList features, int64_t power, bool means,
                                                                      const MaybeTensor& lengths, int64_t padded_length) {
  static const auto op = dispatched<std::tuple<std::vector<Tensor>, std::vector<Tensor>>(
      at::TensorList, int64_t, bool, const MaybeTensor&, c10::SymInt)>("abckd::tap_forward");
  return op.call(features, power, means, lengths, padded_length);
}

// The features pass through, so that backward receives what the rest of the network sends them.
struct Tap : torch::autograd::Function<Tap> {
  static variable_list forward(AutogradContext* context, at::TensorList features, int64_t power, bool means,
                               const MaybeTensor& lengths, int64_t padded_length) {
    context->set_materialize_grads(false);
    context->saved_data["power"] = power;
    context->saved_data["padded_length"] = padded_length;
    context->saved_data["count"] = static_cast<int64_t>(features.size());
    variable_list saved{lengths.value_or(Tensor())};
    for (const Tensor& x : features) saved.push_back(x.requires_grad() ? x : Tensor());
    context->save_for_backward(saved);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [maps, channel_means] = call_tap_forward(features, power, means, lengths, padded_length);
    variable_list outputs(features.begin(), features.end());
    outputs.insert(outputs.end(), maps.begin(), maps.end());
    outputs.insert(outputs.end(), channel_means.begin(), channel_means.end());
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return once_differentiable<Tap>(context, grads);
  }

  static variable_list first_derivative(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const size_t count = context->saved_data["count"].toInt();
    variable_list results(count + 4);
    std::vector<size_t> reached;
    std::vector<Tensor> features;
    OptionalTensors own, map_grads, mean_grads;
    const auto maybe = [&](size_t index) {
      return index < grads.size() && grads[index].defined() ? MaybeTensor(grads[index]) : std::nullopt;
    };
    for (size_t i = 0; i < count; ++i) {
      if (!saved[1 + i].defined()) continue;
      const MaybeTensor map_grad = maybe(count + i), mean_grad = maybe(2 * count + i);
      if (!map_grad.has_value() && !mean_grad.has_value()) {
        results[i] = grads[i];
        continue;
      }
      reached.push_back(i);
      features.push_back(saved[1 + i]);
      own.push_back(maybe(i));
      map_grads.push_back(map_grad);
      mean_grads.push_back(mean_grad);
    }
    if (reached.empty()) return results;
    static const auto op = dispatched<std::vector<Tensor>(const OptionalTensors&, at::TensorList, const OptionalTensors&,
                                                          const OptionalTensors&, int64_t, const MaybeTensor&,
                                                          c10::SymInt)>("abckd::tap_backward");
    const MaybeTensor lengths = saved[0].defined() ? MaybeTensor(saved[0]) : std::nullopt;
    const auto fresh = op.call(own, features, map_grads, mean_grads, context->saved_data["power"].toInt(), lengths,
                               context->saved_data["padded_length"].toInt());
    for (size_t k = 0; k < reached.size(); ++k) results[reached[k]] = fresh[k];
    return results;
  }
};

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> tap(const std::vector<Tensor>& features,
                                                                              int64_t power, bool means,
                                                                              const MaybeTensor& lengths,
                                                                              int64_t padded_length) {
  const auto outputs = Tap::apply(at::TensorList(features), power, means, lengths, padded_length);
  const auto part = [&](size_t index) {
    const auto begin = outputs.begin() + index * features.size();
    return begin < outputs.end() ? std::vector<Tensor>(begin, begin + features.size()) : std::vector<Tensor>();
  };
  return {part(0), part(1), part(2)};
}

// ---------------------------------------------------------------------------------------------- compress

struct Compress : torch::autograd::Function<Compress> {
  static variable_list forward(AutogradContext* context, at::TensorList student_maps,
                               const std::vector<Tensor>& teacher_maps, const MaybeTensor& scores, const MaybeTensor& mask,
                               const std::vector<int64_t>& grid, bool per_frame, double temperature,
                               const MaybeTensor& lengths, int64_t padded_length, bool gradients) {
    context->saved_data["needs_scores"] = scores.has_value() && scores->requires_grad();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = dispatched<std::tuple<Tensor, Tensor, Tensor, Tensor>(
        at::TensorList, at::TensorList, const MaybeTensor&, const MaybeTensor&, c10::SymIntArrayRef, bool, double,
        const MaybeTensor&, c10::SymInt, bool)>("abckd::compress_forward");
    auto [distances, attention, attention_grads, map_grads] =
        op.call(student_maps, teacher_maps, scores, mask, c10::fromIntArrayRefSlow(grid), per_frame, temperature, lengths,
                padded_length, gradients);
    context->set_materialize_grads(false);
    std::vector<int64_t> sizes;
    for (const Tensor& map : student_maps) sizes.insert(sizes.end(), {map.size(1), map.size(2)});
    context->saved_data["sizes"] = sizes;
    context->saved_data["padded_length"] = padded_length;
    context->save_for_backward({attention, attention_grads, map_grads, lengths.value_or(Tensor())});
    return {distances, attention};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return once_differentiable<Compress>(context, grads);
  }

  static variable_list first_derivative(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &attention = saved[0], &attention_grads = saved[1], &map_grads = saved[2];
    const auto sizes = context->saved_data["sizes"].toIntVector();
    const size_t students = sizes.size() / 2;
    // One gradient per student map; then teacher maps (one argument here), scores, and seven that are no tensors.
    variable_list results(students + 9);
    if (grads[0].defined()) {
      static const auto op = dispatched<std::vector<Tensor>(const Tensor&, const Tensor&, c10::SymIntArrayRef,
                                                            const MaybeTensor&, c10::SymInt)>("abckd::compress_backward");
      const MaybeTensor lengths = saved[3].defined() ? MaybeTensor(saved[3]) : std::nullopt;
      const auto fresh = op.call(grads[0], map_grads, c10::fromIntArrayRefSlow(sizes), lengths,
                                 context->saved_data["padded_length"].toInt());
      std::copy(fresh.begin(), fresh.end(), results.begin());
    }
    if (context->saved_data["needs_scores"].toBool()) {
      Tensor total = grads[1];
      if (grads[0].defined()) {
        const Tensor through_distances = grads[0].unsqueeze(-1) * attention_grads;
        total = total.defined() ? total + through_distances : through_distances;
      }
      if (total.defined()) {
        total = total.masked_fill(attention == 0, 0);  // the derivative of an entropy is infinite there
        results[students + 1] = attention * (total - (attention * total).sum(-1, true));
      }
    }
    return results;
  }
};

std::tuple<Tensor, Tensor> compress(const std::vector<Tensor>& student_maps, const std::vector<Tensor>& teacher_maps,
                                    const MaybeTensor& scores, const MaybeTensor& mask, const std::vector<int64_t>& grid,
                                    bool per_frame, double temperature, const MaybeTensor& lengths, int64_t padded_length,
                                    bool gradients) {
  const auto outputs = Compress::apply(at::TensorList(student_maps), teacher_maps, scores, mask, grid, per_frame,
                                       temperature, lengths, padded_length, gradients);
  return {outputs[0], outputs[1]};
}

// setup.py names the compute capabilities that csrc/cuda was compiled for; none where it was not.
constexpr bool kHasCuda = sizeof(ABCKD_CUDA_ARCHITECTURES) > 1;

py::dict build_info() {
  py::dict info;
  info["CPU instruction set"] = abckd::cpu::kernels().isa;
  info["CUDA kernels"] = kHasCuda ? "for " ABCKD_CUDA_ARCHITECTURES : "not built";
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "Kernels of abckd_kernels, and their autograd functions for direct eager calls";
  module.def("tap", &tap, "features, power, means, lengths, padded_length -> features, maps, means");
  module.def("compress", &compress,
             "student_maps, teacher_maps, scores, mask, grid, per_frame, temperature, lengths, padded_length, gradients"
             " -> distances, attention");
  module.attr("has_cuda") = kHasCuda;
  module.def("build_info", &build_info, "what was built, as a dict of strings");
}
