// Warps: who a thread is, and sums over lanes.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace abckd::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// Sum over the lanes whose numbers differ by multiples of `step` (a power of two), in every one of them.
template <typename A>
__device__ __forceinline__ A sum_over_lanes(A value, int step = 1) {
  for (int offset = step; offset < kWarp; offset *= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Rows that `sum_rows` reduces at once.
constexpr int kRows = 8;

// Which of the kRows sums `sum_rows` leaves in this lane.
__device__ __forceinline__ int row_of_lane(int lane) { return (lane & 1) * 4 + (lane & 2) + (lane & 4) / 4; }

// Sums kRows values over each group of `width` lanes (8, 16 or 32): lane l of a group gets the sum of values[row_of_lane(l)].
// Each of three exchanges halves the values that a lane is left with: 4 + 2 + 1 shuffles, and at most two more, for
// kRows * 32 / width sums, where one sum after another would take 3 to 5 each.
template <typename A>
__device__ __forceinline__ A sum_rows(A (&values)[kRows], int lane, int width) {
#pragma unroll
  for (int count = kRows / 2, offset = 1; count > 0; count /= 2, offset *= 2) {
    const bool upper = lane & offset;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const A keep = upper ? values[k + count] : values[k];
      const A give = upper ? values[k] : values[k + count];
      values[k] = keep + __shfl_xor_sync(kAllLanes, give, offset);
    }
  }
  if (width > 8) values[0] += __shfl_xor_sync(kAllLanes, values[0], 8);
  if (width > 16) values[0] += __shfl_xor_sync(kAllLanes, values[0], 16);
  return values[0];
}

}  // namespace abckd::cuda
