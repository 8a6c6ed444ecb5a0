// tap on a GPU: the attention map sum_c |x|^r / C and the channel means of features, and their derivative.
//
// A sample of a feature is a matrix in memory: [channel][position], "planes", or [position][channel], "rows", if the feature is
// channels_last. Lanes lie along the contiguous axis, 16 bytes each where the matrix's rows are aligned to that, and kRows loads
// are in flight per lane. Sums along the contiguous axis go through sum_rows, sums across it stay in registers.
//
// One launch serves all layers of a call: their table is a parameter, and the blocks of all layers are numbered through.
// Sums are float (double for double) and always added in the same order.
#pragma once
#include "arguments.h"
#include "elements.cuh"
#include "launch.cuh"
#include "warp.cuh"
#include "windows.h"

namespace abckd::cuda {

constexpr int kTapLayers = 32;     // in one launch: what fits into 4 KB of parameters
constexpr int kWarps = 4;          // per block
constexpr int kThreads = kWarps * kWarp;
constexpr int kBlocks = 4;        // per multiprocessor, at least: 16 warps with 4 KB in flight each; caps registers at 128
constexpr int kMostRows = 256;     // positions of a warp in tap_rows_kernel, at most
constexpr int kBackwardRows = 32;  // rows of a warp's tile in tap_backward_kernel: one for each lane
constexpr int kMeanWarps = 8;      // per block of tap_mean_kernel

// A layer as the forward kernels see it.
struct TapForward {
  const void* x;
  void* map;      // [b, p]
  void* partial;  // [b, tile, c]: channel sums of each tile
  void* mean;     // [b, c]
  int64_t channels, frames, bands;
  int64_t tiles;        // per sample
  int64_t first_block;  // of this layer in the launch; each layer has batch * tiles of them
  int64_t first_mean_block;
  int width;            // lanes that share a row: 8, 16 or 32
  int rows;             // positions of a warp's tile in tap_rows_kernel
  bool vector;          // rows are aligned to 16 bytes
};

struct TapBackward {
  const void* x;
  const void* grad;  // may be null, as may the next two
  const void* map_grad;
  const void* mean_grad;
  void* result;
  int64_t channels, frames, bands;
  int64_t column_tiles, row_tiles;  // per sample
  int64_t first_block;
  int width;
  bool vector;
};

template <typename Layer>
struct TapTable {
  int power;
  int layers;
  int64_t batch;
  Padding padding;
  Layer layer[kTapLayers];

  // The last layer whose first block is not behind this one.
  __device__ const Layer& of_block(int64_t Layer::*first = &Layer::first_block) const {
    int l = 0;
    while (l + 1 < layers && blockIdx.x >= layer[l + 1].*first) ++l;
    return layer[l];
  }

  // Positions of sample b that count; they are the first ones.
  __device__ int64_t valid_positions(const Layer& of, int64_t b) const {
    return valid_frames(padding, b, of.frames) * of.bands;
  }
};

// Of a lane's rows, `at_once` apart, in a batch of kRows: those with number * at_once below this exist. 32 bits are enough.
__device__ __forceinline__ int at_most_all_rows(int64_t rows_left, int at_once) {
  const int all = kRows * at_once;
  return rows_left < all ? static_cast<int>(rows_left) : all;
}

template <typename A>
__device__ __forceinline__ A energy(A x, int power) {
  return power == 2 ? x * x : (x < 0 ? -x : x);
}

// d energy / dx, over the power.
template <typename A>
__device__ __forceinline__ A half_slope(A x, int power) {
  return power == 2 ? x : A((x > 0) - (x < 0));
}

// ---------------------------------------------------------------------------------------------- forward, [channel][position]

// A block owns 16 bytes * width of positions; its warps share the channels, kRows * 32 / width at a time, and add up their
// energies behind the loop. Reads each element once, writes 1/C maps and, with means, one sum per channel and block.
template <typename E, bool kMeans, bool kVector>
__device__ void tap_planes(const TapTable<TapForward>& table, const TapForward& layer) {
  using A = Accumulator<E>;
  constexpr int kCount = Stretch<E, kVector>::kCount;
  const int lane = lane_index(), warp = warp_index(), width = layer.width, at_once = kWarp / width;
  const int64_t tile = (blockIdx.x - layer.first_block) % layer.tiles, b = (blockIdx.x - layer.first_block) / layer.tiles;
  const int64_t positions = layer.frames * layer.bands, valid = table.valid_positions(layer, b);
  const int64_t begin = tile * width * kCount;
  const Stretch<E, kVector> stretch(begin, lane % width, width);
  const int own = stretch.before(valid);
  const int64_t step = at_once * positions, first_row = int64_t(warp) * kRows * at_once + lane / width;
  const E* row = static_cast<const E*>(layer.x) + (b * layer.channels + first_row) * positions + stretch.first;

  A energies[kCount] = {};
  for (int64_t c = first_row; c - lane / width < layer.channels; c += kWarps * kRows * at_once) {
    const int rows_left = at_most_all_rows(layer.channels - c, at_once);
    A sums[kRows] = {};
    typename Stretch<E, kVector>::Elements elements[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k, row += step) elements[k] = stretch.read(row, k * at_once < rows_left ? own : 0);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const A value = Element<E>::widen(elements[k].values[i]);
        energies[i] += energy(value, table.power);
        if (kMeans && (!kVector || i < own)) sums[k] += value;
      }
    }
    row += (kWarps - 1) * kRows * step;
    if (kMeans) {
      const A sum = sum_rows(sums, lane, width);
      // Lanes 8 .. width - 1 of a group hold what lanes 0 .. 7 do.
      if (lane % width < kRows && row_of_lane(lane) * at_once < rows_left) {
        static_cast<A*>(layer.partial)[(b * layer.tiles + tile) * layer.channels + c + row_of_lane(lane) * at_once] = sum;
      }
    }
  }

  ABCKD_SHARED(A, by_warp, kWarps * kWarp * kCount);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const A total = sum_over_lanes(energies[i], width);
    if (lane < width) by_warp[warp * kWarp * kCount + (stretch.at(i) - begin)] = total;
  }
  __syncthreads();
  A* map = static_cast<A*>(layer.map) + b * positions;
  for (int column = threadIdx.x; column < width * kCount && begin + column < positions; column += kThreads) {
    A total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += by_warp[w * kWarp * kCount + column];
    map[begin + column] = begin + column < valid ? total / A(layer.channels) : A(0);
  }
}

template <typename E, bool kMeans>
__global__ void __launch_bounds__(kThreads, kBlocks) tap_planes_kernel(const __grid_constant__ TapTable<TapForward> table) {
  const TapForward& layer = table.of_block();
  layer.vector ? tap_planes<E, kMeans, true>(table, layer) : tap_planes<E, kMeans, false>(table, layer);
}

// ---------------------------------------------------------------------------------------------- forward, [position][channel]

// A warp owns layer.rows positions and walks through the channels in stretches of 16 bytes * width (one stretch, as long as that
// holds all channels). Reads each element once, writes 1/C maps and, with means, one sum per channel and warp.
template <typename E, bool kMeans, bool kVector>
__device__ void tap_rows(const TapTable<TapForward>& table, const TapForward& layer) {
  using A = Accumulator<E>;
  constexpr int kCount = Stretch<E, kVector>::kCount;
  const int lane = lane_index(), width = layer.width, at_once = kWarp / width;
  // Blocks hold kWarps tiles; a tile behind the last one has no samples' rows and does nothing.
  const int64_t number = (blockIdx.x - layer.first_block) * kWarps + warp_index();
  const int64_t tile = number % layer.tiles, b = number / layer.tiles;
  ABCKD_SHARED(A, by_warp, kWarps * kMostRows);
  if (b >= table.batch) return;
  A* energies = by_warp + warp_index() * kMostRows;
  const int64_t positions = layer.frames * layer.bands, valid = table.valid_positions(layer, b), begin = tile * layer.rows;
  const int rows = static_cast<int>(valid - begin < layer.rows ? (valid > begin ? valid - begin : 0) : layer.rows);
  const E* x = static_cast<const E*>(layer.x) + (b * positions + begin + lane / width) * layer.channels;
  const int64_t step = at_once * layer.channels;

  for (int64_t channel = 0; channel < layer.channels; channel += width * kCount) {
    const Stretch<E, kVector> stretch(channel, lane % width, width);
    const int own = stretch.before(layer.channels);
    const E* lane_row = x + stretch.first;
    A sums[kCount] = {};
    for (int first = 0; first < rows; first += kRows * at_once) {
      A row_energies[kRows] = {};
      typename Stretch<E, kVector>::Elements elements[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k, lane_row += step) {
        elements[k] = stretch.read(lane_row, first + k * at_once + lane / width < rows ? own : 0);
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const A value = Element<E>::widen(elements[k].values[i]);
          row_energies[k] += energy(value, table.power);
          if (kMeans) sums[i] += value;
        }
      }
      const A total = sum_rows(row_energies, lane, width);
      const int row = first + row_of_lane(lane) * at_once + lane / width;
      if (lane % width < kRows && row < rows) energies[row] = channel == 0 ? total : energies[row] + total;
    }
    if (kMeans) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] = sum_over_lanes(sums[i], width);
      A* partial = static_cast<A*>(layer.partial) + (b * layer.tiles + tile) * layer.channels;
      stretch.write_sums(partial + stretch.first, sums, lane < width ? own : 0);
    }
  }

  __syncwarp();
  A* map = static_cast<A*>(layer.map) + b * positions + begin;
  for (int row = lane; row < layer.rows && begin + row < positions; row += kWarp) {
    map[row] = row < rows ? energies[row] / A(layer.channels) : A(0);
  }
}

template <typename E, bool kMeans>
__global__ void __launch_bounds__(kThreads, kBlocks) tap_rows_kernel(const __grid_constant__ TapTable<TapForward> table) {
  const TapForward& layer = table.of_block();
  layer.vector ? tap_rows<E, kMeans, true>(table, layer) : tap_rows<E, kMeans, false>(table, layer);
}

// ---------------------------------------------------------------------------------------------- forward, means

// Channel means from the tiles' sums. A block owns 32 channels of a sample, lane by lane; its warps share the tiles.
template <typename A>
__global__ void __launch_bounds__(kMeanWarps * kWarp) tap_mean_kernel(const __grid_constant__ TapTable<TapForward> table) {
  const TapForward& layer = table.of_block(&TapForward::first_mean_block);
  const int64_t blocks = (layer.channels + kWarp - 1) / kWarp, block = blockIdx.x - layer.first_mean_block;
  const int64_t b = block / blocks, c = block % blocks * kWarp + lane_index();
  const A* partial = static_cast<const A*>(layer.partial) + b * layer.tiles * layer.channels + c;
  A sum = 0;
  if (c < layer.channels) {
#pragma unroll 8
    for (int64_t tile = warp_index(); tile < layer.tiles; tile += kMeanWarps) sum += __ldg(partial + tile * layer.channels);
  }
  ABCKD_SHARED(A, by_warp, kMeanWarps * kWarp);
  by_warp[threadIdx.x] = sum;
  __syncthreads();
  if (warp_index() != 0 || c >= layer.channels) return;
  A total = 0;
#pragma unroll
  for (int w = 0; w < kMeanWarps; ++w) total += by_warp[w * kWarp + lane_index()];
  const int64_t valid = table.valid_positions(layer, b);
  static_cast<A*>(layer.mean)[b * layer.channels + c] = total / A(valid > 0 ? valid : 1);
}

// ---------------------------------------------------------------------------------------------- backward

// result = grad + slope(x) * map_grad * r / C + mean_grad / positions, and grad alone at positions that don't count. In either
// layout one of the two factors belongs to a row of the matrix and one to a column: a warp owns kBackwardRows rows of
// 16 bytes * width, holds the rows' factors one per lane and the columns' in registers. Reads x and grad once, writes the
// result once, and reads a column's factor once per kBackwardRows rows.
template <typename E, bool kChannelsLast, bool kVector>
__device__ void tap_backward(const TapTable<TapBackward>& table, const TapBackward& layer) {
  using A = Accumulator<E>;
  constexpr int kCount = Stretch<E, kVector>::kCount;
  constexpr int kBatch = kRows / 2;  // two operands each
  const int lane = lane_index(), width = layer.width, at_once = kWarp / width;
  const int64_t tiles = layer.column_tiles * layer.row_tiles;
  const int64_t number = (blockIdx.x - layer.first_block) * kWarps + warp_index();
  const int64_t tile = number % tiles, b = number / tiles;
  if (b >= table.batch) return;
  const int64_t positions = layer.frames * layer.bands, valid = table.valid_positions(layer, b);
  const int64_t rows = kChannelsLast ? positions : layer.channels, columns = kChannelsLast ? layer.channels : positions;
  const int64_t first_row = tile / layer.column_tiles * kBackwardRows;
  const Stretch<E, kVector> stretch(tile % layer.column_tiles * width * kCount, lane % width, width);

  const A map_scale = A(table.power) / A(layer.channels), mean_scale = A(1) / A(valid > 0 ? valid : 1);
  const A* map_grads = static_cast<const A*>(layer.map_grad);
  const A* mean_grads = static_cast<const A*>(layer.mean_grad);
  const bool has_map = map_grads != nullptr, has_grad = layer.grad != nullptr;
  const A* of_columns = kChannelsLast ? mean_grads : map_grads;
  const A* of_rows = kChannelsLast ? map_grads : mean_grads;
  const int own = stretch.before(columns), own_valid = kChannelsLast ? own : stretch.before(valid);
  const int64_t valid_rows = kChannelsLast ? valid : rows;
  const A row_scale = kChannelsLast ? map_scale : mean_scale, column_scale = kChannelsLast ? mean_scale : map_scale;
  A of_row = 0;
  if (of_rows != nullptr && first_row + lane < valid_rows) of_row = __ldg(of_rows + b * rows + first_row + lane) * row_scale;
  A of_column[kCount] = {};
  if (of_columns != nullptr) stretch.read_sums(of_column, of_columns + b * columns + stretch.first, own_valid);
#pragma unroll
  for (int i = 0; i < kCount; ++i) of_column[i] *= column_scale;

  const int64_t offset = (b * rows + first_row + lane / width) * columns + stretch.first, step = at_once * columns;
  const E* x = static_cast<const E*>(layer.x) + offset;
  const E* grad = static_cast<const E*>(layer.grad) + offset;
  E* result = static_cast<E*>(layer.result) + offset;
  const int rows_left = static_cast<int>(rows - first_row < kBackwardRows ? rows - first_row : kBackwardRows);
  for (int first = lane / width; first - lane / width < rows_left; first += kBatch * at_once) {
    typename Stretch<E, kVector>::Elements values[kBatch], grads[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k, x += step, grad += step) {
      const int row = first + k * at_once;
      const bool exists = row < rows_left, counts = exists && first_row + row < valid_rows;
      values[k] = stretch.read(x, has_map && counts ? own_valid : 0);
      grads[k] = stretch.read(grad, has_grad && exists ? own : 0);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k, result += step) {
      const int row = first + k * at_once;
      const A row_factor = __shfl_sync(kAllLanes, of_row, row % kWarp);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const bool counts = kChannelsLast ? first_row + row < valid : i < own_valid;
        const A slope = half_slope(Element<E>::widen(values[k].values[i]), table.power);
        const A own_grad = kChannelsLast ? slope * row_factor + of_column[i] : slope * of_column[i] + row_factor;
        const A total = Element<E>::widen(grads[k].values[i]) + (counts ? own_grad : A(0));
        grads[k].values[i] = Element<E>::narrow(total);
      }
      stretch.write(result, grads[k], row < rows_left ? own : 0);
    }
  }
}

template <typename E, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, kBlocks) tap_backward_kernel(const __grid_constant__ TapTable<TapBackward> table) {
  const TapBackward& layer = table.of_block();
  layer.vector ? tap_backward<E, kChannelsLast, true>(table, layer) : tap_backward<E, kChannelsLast, false>(table, layer);
}

}  // namespace abckd::cuda
