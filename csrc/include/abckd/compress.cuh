// compress on a GPU: attention-based compression of maps that are already small.
//
// Everything that is asked for follows from the inner products of the maps: with G_xy = <A_x, A_y> over the grid's valid cells,
//
//     norms      |A_x| = sqrt(G_xx)                     similarities   g_ij = G_ij / (|A_i| |A_j|)
//     distance   |a_i - c_i|^2 = g_ii - 2 sum_j alpha_ij g_ij + sum_jk alpha_ij alpha_ik g_jk
//     gradient   d distance_i / d A_i = q_i A_i + sum_j q_ij A_j     with factors q made of g, alpha and the norms
//
// so that three launches suffice: products, attention, gradients. Products are summed in double: a difference of inner products
// then has the digits that a difference of float maps has, where in float it would have none.
// Per frame, a_x is normalised in each row of the grid; a launch before the others finds the rows' norms.
//
// Bytes: maps are read twice (three times per frame), the second time from L2, where the maps of a launch fit as a rule; the
// gradients are written once. Partial products are a few per cent of that.
#pragma once
#include "arguments.h"
#include "elements.cuh"
#include "launch.cuh"
#include "warp.cuh"
#include "windows.h"

namespace abckd::cuda {

constexpr int kCompressThreads = 256;
constexpr int kCompressWarps = kCompressThreads / kWarp;
constexpr int kCompressBlocks = 2;  // per multiprocessor, at least; caps registers at 128
constexpr int kStudentsAtOnce = 4;  // whose gradients share one read of the teacher's maps
constexpr double kEps = 1e-12;

struct CompressLayer {
  const void* map;
  int64_t frames, bands;
};

// Student maps, then teacher maps.
struct CompressTable {
  int students, teachers;
  int64_t batch, grid_frames, grid_bands;
  Padding padding;
  bool vector;  // every map on the grid and every sample of it are aligned to 16 bytes
  CompressLayer layer[kMostMaps];

  __device__ int layers() const { return students + teachers; }
  __device__ int64_t cells() const { return grid_frames * grid_bands; }

  __device__ int64_t valid_rows(int64_t b, int64_t frames) const { return valid_frames(padding, b, frames); }
  __device__ int64_t valid_cells(int64_t b) const { return valid_rows(b, grid_frames) * grid_bands; }

  // A valid cell of sample b of map l: the mean over the valid positions of its window.
  template <typename A>
  __device__ A cell(int l, int64_t b, int64_t at) const {
    const CompressLayer& of = layer[l];
    const A* map = static_cast<const A*>(of.map) + b * of.frames * of.bands;
    if (of.frames == grid_frames && of.bands == grid_bands) return __ldg(map + at);
    const int64_t row = at / grid_bands, column = at % grid_bands, frames = valid_rows(b, of.frames);
    const int64_t t0 = window_begin(row, of.frames, grid_frames), end = window_end(row, of.frames, grid_frames);
    const int64_t t1 = end < frames ? end : frames;
    const int64_t f0 = window_begin(column, of.bands, grid_bands), f1 = window_end(column, of.bands, grid_bands);
    A total = 0;
    for (int64_t t = t0; t < t1; ++t) {
      for (int64_t f = f0; f < f1; ++f) total += __ldg(map + t * of.bands + f);
    }
    return total / A((t1 - t0) * (f1 - f0));
  }

  // The first `own` cells of a lane's stretch, and zeros.
  template <typename A, bool kVector>
  __device__ typename Stretch<A, kVector>::Elements cells_of(int l, int64_t b, const Stretch<A, kVector>& stretch, int own) const {
    const CompressLayer& of = layer[l];
    if (of.frames == grid_frames && of.bands == grid_bands) {
      auto elements = stretch.read(static_cast<const A*>(of.map) + b * cells() + stretch.first, own);
      if (kVector) {
#pragma unroll
        for (int i = 0; i < stretch.kCount; ++i) elements.values[i] = i < own ? elements.values[i] : A(0);
      }
      return elements;
    }
    typename Stretch<A, kVector>::Elements elements{};
#pragma unroll
    for (int i = 0; i < stretch.kCount; ++i) {
      if (i < own) elements.values[i] = cell<A>(l, b, stretch.at(i));
    }
    return elements;
  }
};

// Inner products that are needed, numbered: each student's with itself and with every teacher, then teachers' among themselves.
__host__ __device__ inline int products(int students, int teachers) {
  return students * (teachers + 1) + teachers * (teachers + 1) / 2;
}

// <A_i, A_j> of student i and teacher j, or of student i with itself where j is the number of teachers.
__device__ __forceinline__ int product_of_student(int i, int j, int teachers) { return i * (teachers + 1) + j; }

__device__ __forceinline__ int product_of_teachers(int j, int k, int students, int teachers) {
  const int first = j < k ? j : k, second = j < k ? k : j;
  return students * (teachers + 1) + first * teachers - first * (first - 1) / 2 + second - first;
}

// The layers of product p.
__device__ __forceinline__ void layers_of_product(int p, int students, int teachers, int& x, int& y) {
  if (p < students * (teachers + 1)) {
    x = p / (teachers + 1);
    y = p % (teachers + 1) == teachers ? x : students + p % (teachers + 1);
    return;
  }
  p -= students * (teachers + 1);
  int row = 0;
  for (; p >= teachers - row; ++row) p -= teachers - row;
  x = students + row;
  y = x + p;
}

// inverse_norms[b, layer, row] of the rows of the grid; a warp per row.
template <typename A>
__global__ void __launch_bounds__(kCompressThreads, kCompressBlocks)
    compress_norms_kernel(const __grid_constant__ CompressTable table, A* inverse_norms) {
  const int64_t number = int64_t(blockIdx.x) * kCompressWarps + warp_index(), row = number % table.grid_frames;
  const int64_t b = number / table.grid_frames / table.layers();
  const int l = static_cast<int>(number / table.grid_frames % table.layers());
  if (b >= table.batch || row >= table.valid_rows(b, table.grid_frames)) return;
  double square = 0;
  for (int64_t column = lane_index(); column < table.grid_bands; column += kWarp) {
    const double value = table.cell<A>(l, b, row * table.grid_bands + column);
    square += value * value;
  }
  const double norm = sqrt(sum_over_lanes(square));
  if (lane_index() == 0) inverse_norms[number] = A(1 / (norm > kEps ? norm : kEps));
}

// A block sums over one chunk of a sample's cells, of which it holds `tile` at a time as values [layer][cell of the tile]. Warps
// share the stretches of a tile first and the products then. Per frame, cells are normalised.
template <typename A, bool kVector>
__device__ void compress_products(const CompressTable& table, int64_t chunks, int64_t chunk, int tile,
                                  const A* inverse_norms, double* partial, A* values) {
  constexpr int kStretch = kWarp * Stretch<A, kVector>::kCount;
  const int64_t b = blockIdx.x / chunks, begin = blockIdx.x % chunks * chunk, valid = table.valid_cells(b);
  const int count = products(table.students, table.teachers);
  double* sums = partial + blockIdx.x * int64_t(count);
  const int64_t end = valid < begin + chunk ? valid : begin + chunk;
  // At least one tile, so that the sums of a padded chunk are zero.
  for (int64_t first = begin; first == begin || first < end; first += tile) {
    for (int unit = warp_index(); unit < table.layers() * (tile / kStretch); unit += kCompressWarps) {
      const int l = unit / (tile / kStretch), in_tile = unit % (tile / kStretch) * kStretch;
      const Stretch<A, kVector> stretch(first + in_tile, lane_index(), kWarp);
      const int own = stretch.before(valid);
      const auto elements = table.cells_of<A, kVector>(l, b, stretch, own);
#pragma unroll
      for (int i = 0; i < stretch.kCount; ++i) {
        double value = elements.values[i];
        if (inverse_norms != nullptr && i < own) {
          value *= inverse_norms[(b * table.layers() + l) * table.grid_frames + stretch.at(i) / table.grid_bands];
        }
        values[l * tile + (stretch.at(i) - first)] = A(value);
      }
    }
    __syncthreads();
    for (int p = warp_index(); p < count; p += kCompressWarps) {
      int x, y;
      layers_of_product(p, table.students, table.teachers, x, y);
      double product = 0;
      for (int k = lane_index(); k < tile; k += kWarp) product += double(values[x * tile + k]) * double(values[y * tile + k]);
      product = sum_over_lanes(product);
      if (lane_index() == 0) sums[p] = first == begin ? product : sums[p] + product;
    }
    __syncthreads();
  }
}

// Partial products [b, chunk, product].
template <typename A>
__global__ void __launch_bounds__(kCompressThreads, kCompressBlocks)
    compress_products_kernel(const __grid_constant__ CompressTable table, int64_t chunks, int64_t chunk, int tile,
                             const A* inverse_norms, double* partial) {
  ABCKD_DYNAMIC_SHARED(A, values);
  table.vector ? compress_products<A, true>(table, chunks, chunk, tile, inverse_norms, partial, values)
               : compress_products<A, false>(table, chunks, chunk, tile, inverse_norms, partial, values);
}

// What the kernel below takes besides the partial products, and what it gives.
struct AttentionArguments {
  int students, teachers;
  int64_t chunks, grid_frames;
  Padding padding;
  bool per_frame;
  double temperature;
  const double* partial;  // [b, chunk, product]
  const void* scores;     // as in CompressArguments, and so on
  const bool* mask;
  void* distances;
  void* attention;
  void* attention_grads;
  double* factors;  // [b, i, j]: q_ij, and q_i behind the last teacher; per frame, factors of normalised maps
};

// Attention, distances and the factors of the gradients of one sample, a warp per student layer. Of the attention's derivatives,
// d distance / d alpha_ij = -2 <a_j, a_i - c_i>.
template <typename A>
__global__ void __launch_bounds__(kCompressThreads, kCompressBlocks) compress_attention_kernel(const AttentionArguments a) {
  ABCKD_DYNAMIC_SHARED(double, similarities);
  const int n = a.students, m = a.teachers, count = products(n, m), lane = lane_index();
  double* const inverse_norms = similarities + count;
  double* const alpha = inverse_norms + n + m + warp_index() * 2 * m;
  double* const alpha_grads = alpha + m;
  const int64_t b = blockIdx.x;
  const int64_t rows = valid_frames(a.padding, b, a.grid_frames);
  const double groups = a.per_frame && rows > 0 ? double(rows) : 1.0;
  for (int p = threadIdx.x; p < count; p += kCompressThreads) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) sum += a.partial[(b * a.chunks + chunk) * count + p];
    similarities[p] = sum / groups;
  }
  __syncthreads();
  for (int l = threadIdx.x; l < n + m; l += kCompressThreads) {  // per frame, products are of normalised maps already
    const int product = l < n ? product_of_student(l, m, m) : product_of_teachers(l - n, l - n, n, m);
    const double norm = sqrt(similarities[product]);
    inverse_norms[l] = a.per_frame ? 1.0 : 1 / (norm > kEps ? norm : kEps);
  }
  __syncthreads();
  const auto of_teacher = [&](int j) { return inverse_norms[n + j]; };

  for (int i = warp_index(); i < n; i += kCompressWarps) {
    const double of_student = inverse_norms[i];
    const auto similarity = [&](int j) { return similarities[product_of_student(i, j, m)] * of_student * of_teacher(j); };
    const int64_t pair = (b * n + i) * m;

    double largest = -INFINITY, total = 0;
    for (int j = lane; j < m; j += kWarp) {
      const double score =
          a.scores != nullptr ? double(static_cast<const A*>(a.scores)[pair + j]) : similarity(j) / a.temperature;
      alpha[j] = a.mask == nullptr || a.mask[i * m + j] ? score : -INFINITY;
      largest = fmax(largest, alpha[j]);
    }
    for (int offset = 1; offset < kWarp; offset *= 2) largest = fmax(largest, __shfl_xor_sync(kAllLanes, largest, offset));
    for (int j = lane; j < m; j += kWarp) total += alpha[j] = exp(alpha[j] - largest);
    total = sum_over_lanes(total);
    for (int j = lane; j < m; j += kWarp) {
      alpha[j] /= total;
      static_cast<A*>(a.attention)[pair + j] = A(alpha[j]);
    }
    __syncwarp();

    double with_student = 0, with_itself = 0;  // <c_i, a_i>, <c_i, c_i>
    for (int j = lane; j < m; j += kWarp) {
      alpha_grads[j] = 0;
      if (alpha[j] == 0) continue;  // what is left out may be NaN
      double with_target = 0;       // <a_j, c_i>
      for (int k = 0; k < m; ++k) {
        if (alpha[k] == 0) continue;
        with_target += alpha[k] * similarities[product_of_teachers(j, k, n, m)] * of_teacher(j) * of_teacher(k);
      }
      with_student += alpha[j] * similarity(j);
      with_itself += alpha[j] * with_target;
      alpha_grads[j] = -2 * (similarity(j) - with_target);
    }
    with_student = sum_over_lanes(with_student);
    with_itself = sum_over_lanes(with_itself);
    const double own = similarities[product_of_student(i, m, m)] * of_student * of_student;  // 1, or 0 for a map of zeros
    const double distance = own - 2 * with_student + with_itself;
    if (lane == 0) static_cast<A*>(a.distances)[b * n + i] = A(distance < 0 ? 0 : distance);  // NaN stays NaN
    if (a.factors == nullptr) continue;

    double mean_grad = 0, along = 2 * own;  // along: <gradient with respect to a_i, a_i>
    for (int j = lane; j < m; j += kWarp) {
      static_cast<A*>(a.attention_grads)[pair + j] = A(alpha_grads[j]);
      mean_grad += alpha[j] * alpha_grads[j];
    }
    mean_grad = sum_over_lanes(mean_grad);
    double* const factors = a.factors + (b * n + i) * (m + 1);
    double along_teachers = 0;
    for (int j = lane; j < m; j += kWarp) {
      const double of_score = a.scores != nullptr ? 0 : alpha[j] * (alpha_grads[j] - mean_grad) / a.temperature;
      const double factor = of_score - 2 * alpha[j];
      if (factor != 0) along_teachers += factor * similarity(j);
      factors[j] = factor * of_teacher(j) * of_student / groups;
    }
    along += sum_over_lanes(along_teachers);
    // Where the norm is below eps it counts as a constant. Per frame that is for each row to say.
    if (a.per_frame || of_student * kEps >= 1) along = 0;
    if (lane == 0) factors[m] = (2 - along) * of_student * of_student / groups;
    __syncwarp();  // the next student reuses alpha
  }
}

// A block owns 256 stretches of a sample's cells, one per thread.
template <typename A, bool kVector>
__device__ void compress_gradients(const CompressTable& table, int64_t blocks, const double* factors, A* map_grads) {
  constexpr int kCount = Stretch<A, kVector>::kCount;
  const int n = table.students, m = table.teachers;
  const int64_t b = blockIdx.x / blocks, begin = blockIdx.x % blocks * kCompressThreads * kCount;
  const Stretch<A, kVector> stretch(begin, threadIdx.x, kCompressThreads);
  const int own = stretch.before(table.cells()), own_valid = stretch.before(table.valid_cells(b));
  for (int first = 0; first < n; first += kStudentsAtOnce) {
    const double* of_sample = factors + (b * n + first) * (m + 1);
    double grads[kStudentsAtOnce][kCount] = {};
    for (int j = 0; j < m; ++j) {
      const auto teacher = table.cells_of<A, kVector>(n + j, b, stretch, own_valid);
#pragma unroll
      for (int s = 0; s < kStudentsAtOnce; ++s) {
        const double factor = first + s < n ? of_sample[s * (m + 1) + j] : 0;
        if (factor == 0) continue;
#pragma unroll
        for (int i = 0; i < kCount; ++i) grads[s][i] += factor * teacher.values[i];
      }
    }
#pragma unroll
    for (int s = 0; s < kStudentsAtOnce; ++s) {
      if (first + s < n) {
        auto student = table.cells_of<A, kVector>(first + s, b, stretch, own_valid);
        const double factor = of_sample[s * (m + 1) + m];
#pragma unroll
        for (int i = 0; i < kCount; ++i) student.values[i] = A(grads[s][i] + factor * student.values[i]);
        stretch.write(map_grads + (b * n + first + s) * table.cells() + stretch.first, student, own);
      }
    }
  }
}

// map_grads [b, i, cell] = q_i A_i + sum_j q_ij A_j; zero in padded rows, of which cells_of gives zeros.
template <typename A>
__global__ void __launch_bounds__(kCompressThreads, kCompressBlocks)
    compress_gradients_kernel(const __grid_constant__ CompressTable table, int64_t blocks, const double* factors, A* map_grads) {
  table.vector ? compress_gradients<A, true>(table, blocks, factors, map_grads)
               : compress_gradients<A, false>(table, blocks, factors, map_grads);
}

// The same where rows are normalised: a warp per row of a sample. It goes over the row twice: first for the part of the gradient
// with respect to a_i that lies along a_i, which the normalisation takes away; then for the gradient.
template <typename A>
__global__ void __launch_bounds__(kCompressThreads, kCompressBlocks)
    compress_frame_gradients_kernel(const __grid_constant__ CompressTable table, const A* inverse_norms,
                                    const double* factors, A* map_grads) {
  const int n = table.students, m = table.teachers;
  const int64_t number = int64_t(blockIdx.x) * kCompressWarps + warp_index(), b = number / table.grid_frames;
  const int64_t row = number % table.grid_frames, cell = row * table.grid_bands;
  if (b >= table.batch) return;
  const bool counts = row < table.valid_rows(b, table.grid_frames);
  const auto inverse_norm = [&](int l) { return double(inverse_norms[(b * table.layers() + l) * table.grid_frames + row]); };
  for (int first = 0; first < n; first += kStudentsAtOnce) {
    const double* of_sample = factors + (b * n + first) * (m + 1);
    // The gradients with respect to the normalised maps of these students in a column, and the maps' values.
    const auto column_of = [&](int64_t column, double (&grads)[kStudentsAtOnce], double (&values)[kStudentsAtOnce]) {
#pragma unroll
      for (int s = 0; s < kStudentsAtOnce; ++s) {
        values[s] = first + s < n ? table.cell<A>(first + s, b, cell + column) * inverse_norm(first + s) : 0;
        grads[s] = first + s < n ? of_sample[s * (m + 1) + m] * values[s] : 0;
      }
      for (int j = 0; j < m; ++j) {
        const double teacher = table.cell<A>(n + j, b, cell + column) * inverse_norm(n + j);
#pragma unroll
        for (int s = 0; s < kStudentsAtOnce; ++s) {
          const double factor = first + s < n ? of_sample[s * (m + 1) + j] : 0;
          if (factor != 0) grads[s] += factor * teacher;
        }
      }
    };
    double grads[kStudentsAtOnce], values[kStudentsAtOnce], along[kStudentsAtOnce] = {};
    for (int64_t column = lane_index(); counts && column < table.grid_bands; column += kWarp) {
      column_of(column, grads, values);
#pragma unroll
      for (int s = 0; s < kStudentsAtOnce; ++s) along[s] += grads[s] * values[s];
    }
    double inverse[kStudentsAtOnce];
#pragma unroll
    for (int s = 0; s < kStudentsAtOnce; ++s) {
      inverse[s] = counts && first + s < n ? inverse_norm(first + s) : 0;
      along[s] = sum_over_lanes(along[s]);
      if (inverse[s] >= double(A(1 / kEps))) along[s] = 0;  // where the norm is below eps it counts as a constant
    }
    for (int64_t column = lane_index(); column < table.grid_bands; column += kWarp) {
      if (counts) column_of(column, grads, values);
#pragma unroll
      for (int s = 0; s < kStudentsAtOnce; ++s) {
        const double grad = counts ? (grads[s] - values[s] * along[s]) * inverse[s] : 0;
        if (first + s < n) map_grads[(b * n + first + s) * table.cells() + cell + column] = A(grad);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------- backward

struct CompressResult {
  void* grad;  // [b, frame, band] of a student map
  int64_t frames, bands;
  int64_t first_block;
};

// Positions that a block of compress_backward_kernel owns.
template <typename A>
constexpr int kBackwardPositions = kCompressThreads * Stretch<A, true>::kCount;

struct CompressBackwardTable {
  int students;
  bool vector;  // as in CompressTable, of results and grid gradients
  int64_t grid_frames, grid_bands;
  Padding padding;
  CompressResult layer[kMostMaps];

  __device__ bool on_grid(int i) const { return layer[i].frames == grid_frames && layer[i].bands == grid_bands; }
};

template <typename A, bool kVector>
__device__ void compress_backward(const CompressBackwardTable& table, int i, const A* distance_grads, const A* map_grads) {
  const CompressResult& of = table.layer[i];
  const int64_t T = of.frames, F = of.bands, U = table.grid_frames, V = table.grid_bands;
  const int64_t blocks = (T * F + kBackwardPositions<A> - 1) / kBackwardPositions<A>, block = blockIdx.x - of.first_block;
  const int64_t b = block / blocks;
  const Stretch<A, kVector> stretch(block % blocks * kBackwardPositions<A>, threadIdx.x, kCompressThreads);
  const int own = stretch.before(T * F);
  const A scale = distance_grads[b * table.students + i];
  const A* source = map_grads + (b * table.students + i) * U * V;
  typename Stretch<A, kVector>::Elements result{};
  if (table.on_grid(i)) {
    result = stretch.read(source + stretch.first, own);
  } else {
    const int64_t frames = valid_frames(table.padding, b, T);
#pragma unroll
    for (int k = 0; k < stretch.kCount; ++k) {
      const int64_t t = stretch.at(k) / F, f = stretch.at(k) % F;
      if (k >= own || t >= frames) continue;
      // The cells whose windows hold position (t, f): windows again, with the roles of grid and map exchanged.
      A total = 0;
      for (int64_t u = window_begin(t, U, T); u < window_end(t, U, T); ++u) {
        const int64_t end = window_end(u, T, U), height = (end < frames ? end : frames) - window_begin(u, T, U);
        for (int64_t v = window_begin(f, V, F); v < window_end(f, V, F); ++v) {
          total += __ldg(source + u * V + v) / A(height * (window_end(v, F, V) - window_begin(v, F, V)));
        }
      }
      result.values[k] = total;
    }
  }
#pragma unroll
  for (int k = 0; k < stretch.kCount; ++k) result.values[k] *= scale;
  stretch.write(static_cast<A*>(of.grad) + b * T * F + stretch.first, result, own);
}

// The gradient of a distance spreads over each window, divided by the number of valid positions in it. Grid gradients of padded
// cells are zero. Reads the grid's gradients once where nothing is pooled, and writes the maps' gradients once.
template <typename A>
__global__ void __launch_bounds__(kCompressThreads, kCompressBlocks)
    compress_backward_kernel(const __grid_constant__ CompressBackwardTable table, const A* distance_grads, const A* map_grads) {
  int i = 0;
  while (i + 1 < table.students && blockIdx.x >= table.layer[i + 1].first_block) ++i;
  table.vector && table.on_grid(i) ? compress_backward<A, true>(table, i, distance_grads, map_grads)
                                   : compress_backward<A, false>(table, i, distance_grads, map_grads);
}

}  // namespace abckd::cuda
