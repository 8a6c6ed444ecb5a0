// Launchers of tap: which tiles each layer has, and the kernel for its dtype and layout. Instances: 4 dtypes x (planes, rows) x
// (means, none) forward, 2 of the mean kernel, 4 dtypes x 2 layouts backward: 26.
#include "abckd/tap.cuh"

#include <algorithm>
#include <initializer_list>

#include "blocks.h"
#include "kernels.h"

namespace abckd::cuda {
namespace {

static_assert(sizeof(TapTable<TapForward>) <= kParameterBytes && sizeof(TapTable<TapBackward>) <= kParameterBytes);

int64_t positions_of(const TapLayer& layer) { return layer.frames * layer.bands; }
int64_t row_size(const TapLayer& layer) { return layer.channels_last ? layer.channels : positions_of(layer); }

bool rows_are_aligned(const TapLayer& layer, Dtype dtype, std::initializer_list<const void*> pointers) {
  return row_size(layer) * element_bytes(dtype) % 16 == 0 && std::all_of(pointers.begin(), pointers.end(), is_aligned);
}

// How warps lie over rows: elements of a lane (Stretch::kCount), lanes of a row, and both together.
struct Lanes {
  bool vector;
  int count, width;
  int64_t stretch;

  Lanes(const TapLayer& layer, Dtype dtype, bool is_vector) : vector(is_vector) {
    const int in_16_bytes = static_cast<int>(16 / element_bytes(dtype));
    count = vector ? in_16_bytes : std::min(4, in_16_bytes);
    // As few as hold the row, so that a warp reads several short rows at once.
    const int64_t lanes = divided(row_size(layer), count);
    width = lanes <= 8 ? 8 : lanes <= 16 ? 16 : 32;
    stretch = int64_t{width} * count;
  }
};

Lanes forward_lanes(const TapLayer& layer, Dtype dtype) { return {layer, dtype, rows_are_aligned(layer, dtype, {layer.x})}; }

// Positions of a warp in tap_rows_kernel: fewer where the feature would leave a large GPU idle. With means not too few, because
// a tile's channel sums are written and read once more: at most 3 % of what it reads.
int forward_rows(const TapArguments<TapLayer>& a, const TapLayer& layer) {
  constexpr int64_t kEnoughTiles = 1024;
  const bool half = element_bytes(a.dtype) == 2;
  const int least = layer.mean == nullptr ? 32 : half ? 128 : 64;
  int rows = half ? kMostRows : kMostRows / 2;
  while (rows > least && a.batch * divided(positions_of(layer), rows) < kEnoughTiles) rows /= 2;
  return rows;
}

int64_t forward_tiles(const TapArguments<TapLayer>& a, const TapLayer& layer) {
  return divided(positions_of(layer),
                 layer.channels_last ? forward_rows(a, layer) : forward_lanes(layer, a.dtype).stretch);
}

int64_t partial_bytes(const TapArguments<TapLayer>& a, const TapLayer& layer) {
  if (layer.mean == nullptr) return 0;
  return divided(a.batch * forward_tiles(a, layer) * layer.channels * sum_bytes(a.dtype), 16) * 16;
}

template <bool kMeans>
cudaError_t launch_forward(const TapTable<TapForward>& table, Dtype dtype, bool channels_last, unsigned blocks,
                           cudaStream_t stream) {
  return with_element(dtype, [&](auto element) {
    using E = decltype(element);
    if (channels_last) {
      ABCKD_LAUNCH((tap_rows_kernel<E, kMeans>), blocks, kThreads, 0, stream, table);
    } else {
      ABCKD_LAUNCH((tap_planes_kernel<E, kMeans>), blocks, kThreads, 0, stream, table);
    }
    return cudaGetLastError();
  });
}

// Launches the layers of one layout, with or without means, in tables of kTapLayers.
cudaError_t forward_of_kind(const TapArguments<TapLayer>& a, bool channels_last, bool means, cudaStream_t stream) {
  TapTable<TapForward> table{a.power, 0, a.batch, a.padding, {}};
  int64_t blocks = 0, mean_blocks = 0;
  const auto flush = [&]() -> cudaError_t {
    if (blocks == 0) return cudaSuccess;
    if (too_many(blocks) || too_many(mean_blocks)) return cudaErrorInvalidConfiguration;
    const auto launch = means ? launch_forward<true> : launch_forward<false>;
    cudaError_t status = launch(table, a.dtype, channels_last, static_cast<unsigned>(blocks), stream);
    if (means && status == cudaSuccess) {
      const auto grid = static_cast<unsigned>(mean_blocks);
      if (a.dtype == Dtype::f64) {
        ABCKD_LAUNCH((tap_mean_kernel<double>), grid, kMeanWarps * kWarp, 0, stream, table);
      } else {
        ABCKD_LAUNCH((tap_mean_kernel<float>), grid, kMeanWarps * kWarp, 0, stream, table);
      }
      status = cudaGetLastError();
    }
    table.layers = 0;
    blocks = mean_blocks = 0;
    return status;
  };
  char* partial = static_cast<char*>(a.workspace);
  for (int64_t l = 0; l < a.count; ++l) {
    const TapLayer& layer = a.layers[l];
    if (layer.channels_last == channels_last && (layer.mean != nullptr) == means) {
      const Lanes lanes = forward_lanes(layer, a.dtype);
      const int64_t tiles = forward_tiles(a, layer);
      table.layer[table.layers++] = {layer.x, layer.map, partial, layer.mean, layer.channels, layer.frames,
                                     layer.bands, tiles, blocks, mean_blocks, lanes.width, forward_rows(a, layer),
                                     lanes.vector};
      blocks += channels_last ? divided(a.batch * tiles, kWarps) : a.batch * tiles;
      mean_blocks += a.batch * divided(layer.channels, kWarp);
      if (table.layers == kTapLayers) {
        if (const cudaError_t status = flush(); status != cudaSuccess) return status;
      }
    }
    partial += partial_bytes(a, layer);
  }
  return flush();
}

cudaError_t backward_of_kind(const TapArguments<TapBackwardLayer>& a, bool channels_last, cudaStream_t stream) {
  TapTable<TapBackward> table{a.power, 0, a.batch, a.padding, {}};
  int64_t blocks = 0;
  const auto flush = [&]() -> cudaError_t {
    if (blocks == 0) return cudaSuccess;
    if (too_many(blocks)) return cudaErrorInvalidConfiguration;
    const cudaError_t status = with_element(a.dtype, [&](auto element) {
      using E = decltype(element);
      const auto grid = static_cast<unsigned>(blocks);
      if (channels_last) {
        ABCKD_LAUNCH((tap_backward_kernel<E, true>), grid, kThreads, 0, stream, table);
      } else {
        ABCKD_LAUNCH((tap_backward_kernel<E, false>), grid, kThreads, 0, stream, table);
      }
      return cudaGetLastError();
    });
    table.layers = 0;
    blocks = 0;
    return status;
  };
  for (int64_t l = 0; l < a.count; ++l) {
    const auto& [layer, grad, result] = a.layers[l];
    if (layer.channels_last != channels_last) continue;
    const int64_t rows = channels_last ? positions_of(layer) : layer.channels;
    const bool vector = rows_are_aligned(layer, a.dtype, {layer.x, layer.map, layer.mean, grad, result});
    const Lanes lanes(layer, a.dtype, vector);
    const int64_t column_tiles = divided(row_size(layer), lanes.stretch), row_tiles = divided(rows, kBackwardRows);
    table.layer[table.layers++] = {layer.x, grad, layer.map, layer.mean, result, layer.channels, layer.frames,
                                   layer.bands, column_tiles, row_tiles, blocks, lanes.width, lanes.vector};
    blocks += divided(a.batch * column_tiles * row_tiles, kWarps);
    if (table.layers == kTapLayers) {
      if (const cudaError_t status = flush(); status != cudaSuccess) return status;
    }
  }
  return flush();
}

}  // namespace

int64_t tap_forward_workspace(const TapArguments<TapLayer>& a) {
  int64_t bytes = 0;
  for (int64_t l = 0; l < a.count; ++l) bytes += partial_bytes(a, a.layers[l]);
  return bytes;
}

cudaError_t tap_forward(const TapArguments<TapLayer>& a, cudaStream_t stream) {
  if (a.batch == 0) return cudaSuccess;
  for (const bool channels_last : {false, true}) {
    for (const bool means : {false, true}) {
      const cudaError_t status = forward_of_kind(a, channels_last, means, stream);
      if (status != cudaSuccess) return status;
    }
  }
  return cudaSuccess;
}

cudaError_t tap_backward(const TapArguments<TapBackwardLayer>& a, cudaStream_t stream) {
  if (a.batch == 0) return cudaSuccess;
  for (const bool channels_last : {false, true}) {
    const cudaError_t status = backward_of_kind(a, channels_last, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace abckd::cuda
