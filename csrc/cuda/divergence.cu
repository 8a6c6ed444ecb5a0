// Launchers of divergence: who reads a row, and the kernel for its dtype. Instances: 4 dtypes x (rows, planes) x (forward,
// backward): 16.
#include "abckd/divergence.cuh"

#include <algorithm>
#include <initializer_list>

#include "blocks.h"
#include "kernels.h"

namespace abckd::cuda {
namespace {

// Threads that share a row: as few lanes as hold it in one batch, so that a warp reads several short rows at once, and a block
// where a warp would take many batches.
int team_of(const DivergenceArguments& of) {
  const int64_t spans = divided(of.classes, 16 / element_bytes(of.dtype));
  constexpr int kMostBatches = 8;
  return spans <= 8 * kSpans ? 8 : spans <= 16 * kSpans ? 16 : spans <= kMostBatches * kWarp * kSpans ? kWarp : kDivergenceThreads;
}

int offset_of(const void* pointer) { return static_cast<int>(reinterpret_cast<uintptr_t>(pointer) % 16); }

// Whether 16 bytes can be read at once: of rows, wherever all tensors' rows begin at the same place; of planes, if all begin at
// a multiple of 16 bytes.
bool is_vector(const DivergenceArguments& of, std::initializer_list<const void*> pointers) {
  if (of.inner == 1) {
    const int first = offset_of(*pointers.begin());
    return first % element_bytes(of.dtype) == 0 &&
           std::all_of(pointers.begin(), pointers.end(), [&](const void* pointer) { return offset_of(pointer) == first; });
  }
  return of.inner * element_bytes(of.dtype) % 16 == 0 && std::all_of(pointers.begin(), pointers.end(), is_aligned);
}

int64_t blocks_of(const DivergenceArguments& of, int team, bool vector) {
  if (of.inner == 1) return divided(of.outer, kDivergenceThreads / team);
  const int in_16_bytes = static_cast<int>(16 / element_bytes(of.dtype));
  return of.outer * divided(of.inner, kWarp * (vector ? in_16_bytes : std::min(4, in_16_bytes)));
}

// The status of launch(element, blocks), with as many blocks as the teams of all rows take.
template <typename Launch>
cudaError_t launch_for(const DivergenceArguments& of, int team, bool vector, const Launch& launch) {
  const int64_t blocks = blocks_of(of, team, vector);
  if (blocks == 0) return cudaSuccess;
  if (too_many(blocks)) return cudaErrorInvalidConfiguration;
  return with_element(of.dtype, [&](auto element) { return launch(element, static_cast<unsigned>(blocks)); });
}

}  // namespace

cudaError_t divergence_forward(const DivergenceForwardArguments& a, cudaStream_t stream) {
  const DivergenceArguments& of = a.of;
  const bool vector = is_vector(of, {of.student, of.teacher});
  const DivergenceForward device{of.kind,   of.outer, of.classes, of.inner, 1 / of.temperature, of.beta, of.student,
                                 of.teacher, a.ignore, a.values,  a.saved,  team_of(of),        vector};
  return launch_for(of, device.team, vector, [&](auto element, unsigned grid) {
    using E = decltype(element);
    if (of.inner == 1) {
      ABCKD_LAUNCH((divergence_rows_kernel<E>), grid, kDivergenceThreads, 0, stream, device);
    } else {
      ABCKD_LAUNCH((divergence_planes_kernel<E>), grid, kDivergenceThreads, 0, stream, device);
    }
    return cudaGetLastError();
  });
}

cudaError_t divergence_backward(const DivergenceBackwardArguments& a, cudaStream_t stream) {
  const DivergenceArguments& of = a.of;
  const bool vector = is_vector(of, {of.student, of.teacher, a.result});
  const DivergenceBackward device{of.kind,    of.outer, of.classes,    of.inner, 1 / of.temperature, of.beta, of.student,
                                  of.teacher, a.saved,  a.value_grads, a.result, team_of(of),        vector};
  return launch_for(of, device.team, vector, [&](auto element, unsigned grid) {
    using E = decltype(element);
    if (of.inner == 1) {
      ABCKD_LAUNCH((divergence_rows_backward_kernel<E>), grid, kDivergenceThreads, 0, stream, device);
    } else {
      ABCKD_LAUNCH((divergence_planes_backward_kernel<E>), grid, kDivergenceThreads, 0, stream, device);
    }
    return cudaGetLastError();
  });
}

}  // namespace abckd::cuda
