// Launchers of spectral. Instances: 4 dtypes forward, 2 of the mean kernel, 4 dtypes backward: 10.
#include "abckd/spectral.cuh"

#include "blocks.h"
#include "kernels.h"

namespace abckd::cuda {
namespace {

static_assert(sizeof(SpectralTable) <= kParameterBytes);

int64_t blocks_of(const SpectralArguments& a) {
  const int64_t pairs = divided(16, 2 * element_bytes(a.dtype)), bins = kSpectralSteps * kSpectralThreads * pairs;
  return divided(a.bins + pairs - 1, bins);  // a sample may begin behind its first block's first pair
}

SpectralTable table_of(const SpectralArguments& a) {
  SpectralTable table{};
  table.student = a.student;
  table.teacher = a.teacher;
  table.result = a.result;
  table.bins = a.bins;
  table.frames = a.frames;
  table.inner = a.inner;
  table.blocks = blocks_of(a);
  table.exponent = a.exponent;
  table.eps = a.eps;
  table.padding = a.padding;
  table.vector = is_aligned(a.student) && is_aligned(a.teacher) && is_aligned(a.result);
  return table;
}

template <typename E>
cudaError_t forward(const SpectralTable& table, int64_t batch, cudaStream_t stream) {
  using A = Accumulator<E>;
  const auto grid = static_cast<unsigned>(batch * table.blocks);
  ABCKD_LAUNCH((spectral_forward_kernel<E>), grid, kSpectralThreads, 0, stream, table);
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
  ABCKD_LAUNCH((spectral_mean_kernel<A>), static_cast<unsigned>(batch), kSpectralThreads, 0, stream, table);
  return cudaGetLastError();
}

template <typename E>
cudaError_t backward(const SpectralTable& table, int64_t batch, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(batch * table.blocks);
  ABCKD_LAUNCH((spectral_backward_kernel<E>), grid, kSpectralThreads, 0, stream, table);
  return cudaGetLastError();
}

}  // namespace

int64_t spectral_forward_workspace(const SpectralArguments& a) { return a.batch * blocks_of(a) * 2 * sum_bytes(a.dtype); }

cudaError_t spectral_forward(const SpectralArguments& a, cudaStream_t stream) {
  SpectralTable table = table_of(a);
  if (a.batch == 0) return cudaSuccess;
  if (too_many(a.batch * table.blocks)) return cudaErrorInvalidConfiguration;
  table.partial = a.workspace;
  table.magnitude = a.magnitude;
  table.complex = a.complex;
  return with_element(a.dtype, [&](auto element) { return forward<decltype(element)>(table, a.batch, stream); });
}

cudaError_t spectral_backward(const SpectralArguments& a, cudaStream_t stream) {
  SpectralTable table = table_of(a);
  if (a.batch == 0) return cudaSuccess;
  if (too_many(a.batch * table.blocks)) return cudaErrorInvalidConfiguration;
  table.magnitude_grads = a.magnitude;
  table.complex_grads = a.complex;
  return with_element(a.dtype, [&](auto element) { return backward<decltype(element)>(table, a.batch, stream); });
}

}  // namespace abckd::cuda
