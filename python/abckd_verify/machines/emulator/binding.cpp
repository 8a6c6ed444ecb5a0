// The CUDA launchers behind the ops for CPU tensors, in the emulator: replaces the CPU kernels of the process that loads it.
// Kernels may touch what the arguments name, to the byte, and nothing else.
#include "csrc/cuda/kernels.h"
#include "csrc/torch/ops.h"
#include "simt.h"

namespace {

using namespace abckd;

void check(const char* kernel, cudaError_t status) {
  TORCH_CHECK(status == cudaSuccess, kernel, ": ", cudaGetErrorString(status));
}

void add(simt::Buffers& buffers, const char* name, const void* data, int64_t bytes) {
  if (data != nullptr) buffers.readable(name, data, bytes);
}
void add(simt::Buffers& buffers, const char* name, void* data, int64_t bytes) {
  if (data != nullptr) buffers.writable(name, data, bytes);
}

// Below, one function per kernel says what it may touch.

// What map and mean are to a kernel: results of tap's forward, and gradients that its backward reads.
template <typename Pointer, typename Layer>
void add_layer(simt::Buffers& buffers, const TapArguments<Layer>& a, const TapLayer& layer) {
  const int64_t positions = layer.frames * layer.bands;
  add(buffers, "x", layer.x, a.batch * layer.channels * positions * element_bytes(a.dtype));
  add(buffers, "map", Pointer(layer.map), a.batch * positions * sum_bytes(a.dtype));
  add(buffers, "mean", Pointer(layer.mean), a.batch * layer.channels * sum_bytes(a.dtype));
}

void tap_forward(simt::Buffers& buffers, const TapArguments<TapLayer>& a) {
  add(buffers, "lengths", a.padding.lengths, a.batch * 8);
  add(buffers, "workspace", a.workspace, cuda::tap_forward_workspace(a));
  for (int64_t l = 0; l < a.count; ++l) add_layer<void*>(buffers, a, a.layers[l]);
}

void tap_backward(simt::Buffers& buffers, const TapArguments<TapBackwardLayer>& a) {
  add(buffers, "lengths", a.padding.lengths, a.batch * 8);
  for (int64_t l = 0; l < a.count; ++l) {
    const auto& [layer, grad, result] = a.layers[l];
    const int64_t bytes = a.batch * layer.channels * layer.frames * layer.bands * element_bytes(a.dtype);
    add_layer<const void*>(buffers, a, layer);
    add(buffers, "grad", grad, bytes);
    add(buffers, "result", result, bytes);
  }
}

void compress_forward(simt::Buffers& buffers, const CompressArguments& a) {
  const int64_t bytes = a.is_double ? 8 : 4, pairs = a.batch * a.students * a.teachers;
  add(buffers, "lengths", a.padding.lengths, a.batch * 8);
  add(buffers, "workspace", a.workspace, cuda::compress_forward_workspace(a));
  for (int64_t i = 0; i < a.students; ++i) {
    const Map& map = a.student_maps[i];
    add(buffers, "student map", map.data, a.batch * map.frames * map.bands * bytes);
  }
  for (int64_t j = 0; j < a.teachers; ++j) {
    const Map& map = a.teacher_maps[j];
    add(buffers, "teacher map", map.data, a.batch * map.frames * map.bands * bytes);
  }
  add(buffers, "scores", a.scores, pairs * bytes);
  add(buffers, "mask", static_cast<const void*>(a.mask), a.students * a.teachers);
  add(buffers, "distances", a.distances, a.batch * a.students * bytes);
  add(buffers, "attention", a.attention, pairs * bytes);
  add(buffers, "attention_grads", a.attention_grads, pairs * bytes);
  add(buffers, "map_grads", a.map_grads, a.batch * a.students * a.grid_frames * a.grid_bands * bytes);
}

void compress_backward(simt::Buffers& buffers, const CompressBackwardArguments& a) {
  const int64_t bytes = a.is_double ? 8 : 4;
  add(buffers, "lengths", a.padding.lengths, a.batch * 8);
  add(buffers, "distance_grads", a.distance_grads, a.batch * a.students * bytes);
  add(buffers, "map_grads", a.map_grads, a.batch * a.students * a.grid_frames * a.grid_bands * bytes);
  for (int64_t i = 0; i < a.students; ++i) {
    const MapGrad& result = a.results[i];
    add(buffers, "result", result.data, a.batch * result.frames * result.bands * bytes);
  }
}

void add_spectra(simt::Buffers& buffers, const SpectralArguments& a) {
  const int64_t bytes = a.batch * a.bins * 2 * element_bytes(a.dtype);
  add(buffers, "lengths", a.padding.lengths, a.batch * 8);
  add(buffers, "student", a.student, bytes);
  add(buffers, "teacher", a.teacher, bytes);
}

void spectral_forward(simt::Buffers& buffers, const SpectralArguments& a) {
  add_spectra(buffers, a);
  add(buffers, "workspace", a.workspace, cuda::spectral_forward_workspace(a));
  add(buffers, "magnitude", a.magnitude, a.batch * sum_bytes(a.dtype));
  add(buffers, "complex", a.complex, a.batch * sum_bytes(a.dtype));
}

void spectral_backward(simt::Buffers& buffers, const SpectralArguments& a) {
  add_spectra(buffers, a);
  add(buffers, "magnitude", static_cast<const void*>(a.magnitude), a.batch * sum_bytes(a.dtype));
  add(buffers, "complex", static_cast<const void*>(a.complex), a.batch * sum_bytes(a.dtype));
  add(buffers, "result", a.result, a.batch * a.bins * 2 * element_bytes(a.dtype));
}

void add_logits(simt::Buffers& buffers, const DivergenceArguments& of) {
  const int64_t bytes = of.outer * of.classes * of.inner * element_bytes(of.dtype);
  add(buffers, "student", of.student, bytes);
  add(buffers, "teacher", of.teacher, bytes);
}

void divergence_forward(simt::Buffers& buffers, const DivergenceForwardArguments& a) {
  const int64_t rows = a.of.outer * a.of.inner, bytes = rows * sum_bytes(a.of.dtype);
  add_logits(buffers, a.of);
  add(buffers, "ignore", static_cast<const void*>(a.ignore), rows);
  add(buffers, "values", a.values, bytes);
  add(buffers, "saved", a.saved, divergence_saved(a.of.kind) * bytes);
}

void divergence_backward(simt::Buffers& buffers, const DivergenceBackwardArguments& a) {
  const int64_t bytes = a.of.outer * a.of.inner * sum_bytes(a.of.dtype);
  add_logits(buffers, a.of);
  add(buffers, "value_grads", a.value_grads, bytes);
  add(buffers, "saved", a.saved, divergence_saved(a.of.kind) * bytes);
  add(buffers, "result", a.result, a.of.outer * a.of.classes * a.of.inner * element_bytes(a.of.dtype));
}

constexpr Device kDevice{
    .most_maps = kMostMaps,
#define ABCKD_ENTRY(kernel, Arguments)        \
  .kernel = [](const Arguments& a) {          \
    simt::Buffers buffers;                    \
    kernel(buffers, a);                       \
    check(#kernel, cuda::kernel(a, nullptr)); \
  },
    ABCKD_CUDA_KERNELS(ABCKD_ENTRY)
#define ABCKD_WORKSPACE(kernel, Arguments) .kernel##_workspace = cuda::kernel##_workspace,
    ABCKD_KERNELS_WITH_WORKSPACE(ABCKD_WORKSPACE)
};

}  // namespace

TORCH_LIBRARY_IMPL(abckd, CPU, library) { ABCKD_CUDA_KERNELS(ABCKD_REGISTER) }
