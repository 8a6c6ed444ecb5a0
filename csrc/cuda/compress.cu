// Launchers of compress. Instances: 5 kernels forward and one backward, each for float and double maps: 12.
#include "abckd/compress.cuh"

#include <algorithm>

#include "blocks.h"
#include "kernels.h"

namespace abckd::cuda {
namespace {

constexpr int64_t kSharedBytes = 48 << 10;  // of dynamic shared memory without asking the driver for more
constexpr int64_t kTileCells = 512;
constexpr int64_t kChunkCells = 512;

static_assert(sizeof(CompressTable) + 64 <= kParameterBytes && sizeof(CompressBackwardTable) + 64 <= kParameterBytes);

// How the sums over a sample's cells are split, and where the parts of the workspace begin (in doubles, though inverse norms
// are of the maps' type).
struct Plan {
  int layers, products;
  int64_t cells, tile, chunk, chunks;
  int64_t inverse_norms, factors, doubles;

  explicit Plan(const CompressArguments& a) {
    const int64_t bytes = a.is_double ? 8 : 4, stretch = kWarp * 16 / bytes;
    const int students = static_cast<int>(a.students), teachers = static_cast<int>(a.teachers);
    layers = students + teachers;
    products = abckd::cuda::products(students, teachers);
    cells = a.grid_frames * a.grid_bands;
    tile = std::min({kTileCells, kSharedBytes / (layers * bytes), divided(cells, stretch) * stretch}) / stretch * stretch;
    // As long as a chunk's partial products are much less than the chunk.
    chunk = divided(std::max<int64_t>(kChunkCells, 8 * int64_t{products}), tile) * tile;
    chunks = divided(cells, chunk);
    const int64_t partial = a.batch * chunks * products;
    inverse_norms = partial;
    factors = inverse_norms + (a.per_frame ? a.batch * layers * a.grid_frames : 0);
    doubles = factors + a.batch * a.students * (a.teachers + 1);
  }
};

template <typename A>
cudaError_t forward(const CompressArguments& a, const CompressTable& table, cudaStream_t stream) {
  const Plan plan(a);
  double* const partial = static_cast<double*>(a.workspace);
  A* const inverse_norms = a.per_frame ? reinterpret_cast<A*>(partial + plan.inverse_norms) : nullptr;
  double* const factors = a.map_grads == nullptr ? nullptr : partial + plan.factors;
  const int64_t row_blocks = divided(a.batch * a.grid_frames, kCompressWarps);
  const int64_t norm_blocks = divided(a.batch * plan.layers * a.grid_frames, kCompressWarps);
  const int64_t cell_blocks = divided(plan.cells, kCompressThreads * Stretch<A, true>::kCount);
  for (const int64_t blocks : {a.batch * plan.chunks, a.batch * cell_blocks, norm_blocks}) {
    if (too_many(blocks)) return cudaErrorInvalidConfiguration;
  }
  cudaError_t status = cudaSuccess;
  if (a.per_frame) {
    ABCKD_LAUNCH((compress_norms_kernel<A>), norm_blocks, kCompressThreads, 0, stream, table, inverse_norms);
    if ((status = cudaGetLastError()) != cudaSuccess) return status;
  }
  ABCKD_LAUNCH((compress_products_kernel<A>), a.batch * plan.chunks, kCompressThreads, plan.layers * plan.tile * sizeof(A), stream,
               table, plan.chunks, plan.chunk, static_cast<int>(plan.tile), inverse_norms, partial);
  if ((status = cudaGetLastError()) != cudaSuccess) return status;
  const AttentionArguments attention{table.students, table.teachers, plan.chunks, a.grid_frames, a.padding, a.per_frame,
                                     a.temperature, partial, a.scores, a.mask, a.distances, a.attention, a.attention_grads,
                                     factors};
  const size_t shared_bytes = (plan.products + plan.layers + kCompressWarps * 2 * a.teachers) * sizeof(double);
  ABCKD_LAUNCH((compress_attention_kernel<A>), a.batch, kCompressThreads, shared_bytes, stream, attention);
  if ((status = cudaGetLastError()) != cudaSuccess || factors == nullptr) return status;
  A* const map_grads = static_cast<A*>(a.map_grads);
  if (a.per_frame) {
    ABCKD_LAUNCH((compress_frame_gradients_kernel<A>), row_blocks, kCompressThreads, 0, stream, table, inverse_norms, factors,
                 map_grads);
  } else {
    ABCKD_LAUNCH((compress_gradients_kernel<A>), a.batch * cell_blocks, kCompressThreads, 0, stream, table, cell_blocks, factors,
                 map_grads);
  }
  return cudaGetLastError();
}

template <typename A>
cudaError_t backward(const CompressBackwardArguments& a, CompressBackwardTable table, cudaStream_t stream) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < a.students; ++i) {
    const MapGrad& result = a.results[i];
    table.layer[i] = {result.data, result.frames, result.bands, blocks};
    if (result.frames == a.grid_frames && result.bands == a.grid_bands) table.vector = table.vector && is_aligned(result.data);
    blocks += a.batch * divided(result.frames * result.bands, kBackwardPositions<A>);
  }
  if (too_many(blocks)) return cudaErrorInvalidConfiguration;
  ABCKD_LAUNCH((compress_backward_kernel<A>), blocks, kCompressThreads, 0, stream, table, static_cast<const A*>(a.distance_grads),
               static_cast<const A*>(a.map_grads));
  return cudaGetLastError();
}

// Every sample's maps on the grid begin at a multiple of 16 bytes.
bool samples_are_aligned(int64_t grid_frames, int64_t grid_bands, bool is_double) {
  return grid_frames * grid_bands * (is_double ? 8 : 4) % 16 == 0;
}

}  // namespace

int64_t compress_forward_workspace(const CompressArguments& a) { return Plan(a).doubles * int64_t{sizeof(double)}; }

cudaError_t compress_forward(const CompressArguments& a, cudaStream_t stream) {
  if (a.students + a.teachers > kMostMaps) return cudaErrorInvalidValue;
  if (a.batch == 0) return cudaSuccess;
  CompressTable table{static_cast<int>(a.students), static_cast<int>(a.teachers), a.batch, a.grid_frames, a.grid_bands, a.padding,
                      samples_are_aligned(a.grid_frames, a.grid_bands, a.is_double) && is_aligned(a.map_grads), {}};
  for (int64_t l = 0; l < a.students + a.teachers; ++l) {
    const Map& map = l < a.students ? a.student_maps[l] : a.teacher_maps[l - a.students];
    table.layer[l] = {map.data, map.frames, map.bands};
    if (map.frames == a.grid_frames && map.bands == a.grid_bands) table.vector = table.vector && is_aligned(map.data);
  }
  return a.is_double ? forward<double>(a, table, stream) : forward<float>(a, table, stream);
}

cudaError_t compress_backward(const CompressBackwardArguments& a, cudaStream_t stream) {
  if (a.students > kMostMaps) return cudaErrorInvalidValue;
  if (a.batch == 0 || a.students == 0) return cudaSuccess;
  const bool vector = samples_are_aligned(a.grid_frames, a.grid_bands, a.is_double) && is_aligned(a.map_grads);
  const CompressBackwardTable table{static_cast<int>(a.students), vector, a.grid_frames, a.grid_bands, a.padding, {}};
  return a.is_double ? backward<double>(a, table, stream) : backward<float>(a, table, stream);
}

}  // namespace abckd::cuda
