// One kernel per kind of bug: <true> has it, <false> is the same without it. x and y have kElements floats, y may be written.
// Kernels run with kThreads threads in kBlocks blocks; one thread per element would be kElements of them.
#include <cuda_runtime.h>

#include <cstring>
#include <iterator>
#include <type_traits>

#include "simt.h"

namespace planted {

constexpr int kElements = 128, kThreads = 64, kBlocks = 2;

__device__ __forceinline__ int element() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// ---- bounds, permission, alignment

template <bool Bug>
__global__ void load_out_of_bounds(const float* x, float* y) {
  const int i = element();
  y[i] = x[i + (Bug ? 1 : 0)];
}

template <bool Bug>
__global__ void load_before_begin(const float* x, float* y) {
  const int i = element();
  y[i] = x[i - (Bug || i > 0 ? 1 : 0)];
}

template <bool Bug>
__global__ void store_out_of_bounds(const float* x, float* y) {
  const int i = element();
  if (i < (Bug ? kElements : kElements - 1)) y[i + 1] = x[i];
}

template <bool Bug>
__global__ void vector_out_of_bounds(const float* x, float* y) {
  const int i = element();
  if (4 * i >= kElements + (Bug ? 4 : 0)) return;
  __stcs(reinterpret_cast<float4*>(y) + i, __ldg(reinterpret_cast<const float4*>(x) + i));
}

template <bool Bug>
__global__ void copy_out_of_bounds(const float* x, float* y, int bytes) {
  if (element() == 0) memcpy(y, x, static_cast<size_t>(bytes + (Bug ? 1 : 0)));
}

template <bool Bug>
__global__ void store_to_read_only(const float* x, float* y) {
  const int i = element();
  (Bug ? const_cast<float*>(x) : y)[i] = 1;
}

template <bool Bug>
__global__ void null_pointer(const float* x, float* y, const float* bias) {
  const int i = element();
  y[i] = x[i] + (Bug || bias ? *bias : 0);
}

template <bool Bug>
__global__ void misaligned_global(const float* x, float* y) {
  const int i = element();
  if (4 * i + 4 < kElements) y[i] = __ldg(reinterpret_cast<const float4*>(x + 4 * i + (Bug ? 1 : 0))).x;
}

template <bool Bug>
__global__ void misaligned_shared(const float* x, float* y) {
  using Element = std::conditional_t<Bug, float, float4>;  // an array of floats need not be aligned to 16 bytes
  ABCKD_SHARED(Element, row, sizeof(float) * kThreads / sizeof(Element));
  reinterpret_cast<float*>(row)[threadIdx.x] = x[element()];
  __syncthreads();
  y[element()] = __ldg(reinterpret_cast<const float4*>(row) + threadIdx.x / 4).y;
}

template <bool Bug>
__global__ void shared_out_of_bounds(const float* x, float* y) {
  ABCKD_SHARED(float, left, kThreads);
  ABCKD_SHARED(float, right, kThreads);
  left[threadIdx.x] = right[threadIdx.x] = x[element()];
  __syncthreads();
  y[element()] = left[threadIdx.x + (Bug ? 1 : 0)] + right[threadIdx.x];
}

template <bool Bug>
__global__ void dynamic_shared_out_of_bounds(const float* x, float* y) {
  ABCKD_DYNAMIC_SHARED(float, row);
  row[threadIdx.x + (Bug ? 1 : 0)] = x[element()];
  __syncthreads();
  y[element()] = row[threadIdx.x + (Bug ? 1 : 0)];
}

template <bool Bug>
__global__ void no_dynamic_shared(const float* x, float* y) {
  if (!Bug) {
    y[element()] = x[element()];
    return;
  }
  ABCKD_DYNAMIC_SHARED(float, row);
  row[threadIdx.x] = x[element()];
}

template <bool Bug>
__global__ void too_much_shared(const float* x, float* y) {
  ABCKD_SHARED(float, rows, (48 << 10) / sizeof(float));
  rows[threadIdx.x] = x[element()];
  y[element()] = rows[threadIdx.x];
  if (Bug) {
    ABCKD_SHARED(float, more, 1);
    *more = 1;
  }
}

struct Table {
  float offsets[4];
  int used;
};

template <bool Bug>
__global__ void table_out_of_bounds(const float* x, float* y, const __grid_constant__ Table table) {
  y[element()] = x[element()] + table.offsets[threadIdx.x % 4 + (Bug ? table.used : 0)];
}

template <bool Bug>
__global__ void offset_overflow(const float* x, float* y, int stride) {
  const int i = element();
  const int64_t offset = Bug ? i * stride : int64_t{i} * stride;
  y[i] = x[offset % kElements];
}

template <bool Bug>
__global__ void local_of_another_thread(const float* x, float* y) {
  ABCKD_SHARED(const float*, pointer, 1);
  float local[2] = {x[element()], 1};
  if (threadIdx.x == 0) *pointer = Bug ? local : x;
  __syncthreads();
  y[element()] = (*pointer)[0];
}

// ---- initialisation and races

template <bool Bug>
__global__ void uninitialised_shared(const float* x, float* y) {
  ABCKD_SHARED(float, row, kThreads);
  if (!Bug || threadIdx.x != 5) row[threadIdx.x] = x[element()];
  __syncthreads();
  y[element()] = row[threadIdx.x ^ 1];
}

template <bool Bug>
__global__ void load_after_store_race(const float* x, float* y) {
  ABCKD_SHARED(float, row, kThreads);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = x[element()];
  if (!Bug) __syncthreads();
  y[element()] = row[(threadIdx.x + 32) % kThreads];
}

template <bool Bug>
__global__ void store_after_load_race(const float* x, float* y) {
  ABCKD_SHARED(float, row, kThreads);
  float sum = 0;
  for (int step = 0; step < 3; ++step) {
    row[threadIdx.x] = x[element()];
    __syncthreads();
    sum += row[kThreads - 1 - threadIdx.x];
    if (!Bug) __syncthreads();
  }
  y[element()] = sum;
}

template <bool Bug>
__global__ void store_store_race(const float* x, float* y) {
  ABCKD_SHARED(float, last, 1);
  if (!Bug && threadIdx.x != kThreads - 1) return;
  *last = x[element()];
  y[element()] = *last;
}

template <bool Bug>
__global__ void race_within_warp(const float* x, float* y) {
  ABCKD_SHARED(float, row, kThreads);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = x[element()];
  if (!Bug) __syncwarp();
  y[element()] = row[threadIdx.x ^ 1];
}

// A shuffle brings lanes together, but orders no memory.
template <bool Bug>
__global__ void race_despite_shuffle(const float* x, float* y) {
  ABCKD_SHARED(float, row, kThreads);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = x[element()];
  const float other = __shfl_xor_sync(0xffffffffu, x[element()], 2);
  if (!Bug) __syncwarp();
  y[element()] = row[threadIdx.x ^ 1] + other;
}

// Lanes meet in halves of the warp, but read across the halves.
template <bool Bug>
__global__ void race_across_masks(const float* x, float* y) {
  ABCKD_SHARED(float, row, kThreads);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = x[element()];
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  __syncwarp(half);
  y[element()] = row[threadIdx.x ^ (Bug ? 16 : 8)];
}

template <bool Bug>
__global__ void global_race_in_block(const float* x, float* y) {
  y[element()] = x[element()];
  if (!Bug) __syncthreads();
  const float next = y[blockIdx.x * kThreads + (threadIdx.x + 40) % kThreads];
  __syncthreads();
  y[element()] = next;
}

template <bool Bug>
__global__ void store_race_between_blocks(const float* x, float* y) {
  y[Bug ? threadIdx.x : element()] = x[element()];
}

template <bool Bug>
__global__ void load_race_between_blocks(const float* x, float* y) {
  const int neighbour = (element() + kThreads) % kElements;
  y[element()] = Bug ? y[neighbour] : x[neighbour];
}

template <bool Bug>
__global__ void atomic_and_store_race(const float* x, float* y) {
  if (Bug && element() == 3) y[0] = x[0];
  atomicAdd(&y[0], x[element()]);
}

// ---- barriers and warp operations

template <bool Bug>
__global__ void barrier_in_branch(const float* x, float* y) {
  if (!Bug || threadIdx.x < 40) __syncthreads();
  y[element()] = x[element()];
}

template <bool Bug>
__global__ void return_before_barrier(const float* x, float* y) {
  if (Bug && element() >= kElements - 3) return;
  __syncthreads();
  y[element()] = x[element()];
}

template <bool Bug>
__global__ void two_barriers(const float* x, float* y) {
  if (threadIdx.x < (Bug ? 32 : kThreads)) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[element()] = x[element()];
}

template <bool Bug>
__global__ void shuffle_after_return(const float* x, float* y) {
  if (Bug && threadIdx.x == kThreads - 1) return;
  y[element()] = __shfl_xor_sync(0xffffffffu, x[element()], 1);
}

template <bool Bug>
__global__ void vote_in_branch(const float* x, float* y) {
  const unsigned mask = Bug ? 0xffffffffu : 0x000000ffu;
  y[element()] = x[element()];
  if (threadIdx.x % 32 < 8) y[element()] = __any_sync(mask, x[element()] > 0) ? 1.f : 0.f;
  __syncwarp();
}

template <bool Bug>
__global__ void masks_that_differ(const float* x, float* y) {
  y[element()] = __shfl_down_sync(Bug && threadIdx.x == 7 ? 0x00ffffffu : 0xffffffffu, x[element()], 1);
}

template <bool Bug>
__global__ void mask_without_caller(const float* x, float* y) {
  if (Bug || threadIdx.x % 32 < 16) y[element()] = __shfl_sync(0x0000ffffu, x[element()], 3);
}

template <bool Bug>
__global__ void shuffle_from_outside_mask(const float* x, float* y) {
  if (threadIdx.x % 32 < 16) y[element()] = __shfl_sync(0x0000ffffu, x[element()], Bug ? 16 : 15);
}

// A block of 40 threads: its second warp has 8 lanes.
template <bool Bug>
__global__ void shuffle_beyond_block(const float* x, float* y) {
  y[element()] = __shfl_xor_sync(0xffffffffu, x[element()], Bug ? 16 : 4);
}

struct Planted {
  const char* kind;
  void (*run)(bool bug, const float* x, float* y);
};

#define PLANT_LAUNCHED(kernel, blocks, threads, shared_bytes, ...)                                      \
  Planted {                                                                                             \
    #kernel, [](bool bug, const float* x, float* y) {                                                   \
      if (bug) ABCKD_LAUNCH(kernel<true>, blocks, threads, shared_bytes, nullptr, x, y, ##__VA_ARGS__); \
      else ABCKD_LAUNCH(kernel<false>, blocks, threads, shared_bytes, nullptr, x, y, ##__VA_ARGS__);    \
    }                                                                                                   \
  }
#define PLANT(kernel, ...) PLANT_LAUNCHED(kernel, kBlocks, kThreads, 0, ##__VA_ARGS__)

const Planted all[] = {
    PLANT(load_out_of_bounds),
    PLANT(load_before_begin),
    PLANT(store_out_of_bounds),
    PLANT(vector_out_of_bounds),
    PLANT(copy_out_of_bounds, static_cast<int>(kElements * sizeof(float))),
    PLANT(store_to_read_only),
    PLANT(null_pointer, nullptr),
    PLANT(misaligned_global),
    PLANT(misaligned_shared),
    PLANT(shared_out_of_bounds),
    PLANT_LAUNCHED(dynamic_shared_out_of_bounds, kBlocks, kThreads, kThreads * sizeof(float)),
    PLANT(no_dynamic_shared),
    PLANT(too_much_shared),
    PLANT(table_out_of_bounds, Table{{1, 2, 3, 4}, 4}),
    PLANT(offset_overflow, 1 << 28),
    PLANT(local_of_another_thread),
    PLANT(uninitialised_shared),
    PLANT(load_after_store_race),
    PLANT(store_after_load_race),
    PLANT(store_store_race),
    PLANT(race_within_warp),
    PLANT(race_despite_shuffle),
    PLANT(race_across_masks),
    PLANT(global_race_in_block),
    PLANT(store_race_between_blocks),
    PLANT(load_race_between_blocks),
    PLANT(atomic_and_store_race),
    PLANT(barrier_in_branch),
    PLANT(return_before_barrier),
    PLANT(two_barriers),
    PLANT(shuffle_after_return),
    PLANT(vote_in_branch),
    PLANT(masks_that_differ),
    PLANT(mask_without_caller),
    PLANT(shuffle_from_outside_mask),
    PLANT_LAUNCHED(shuffle_beyond_block, 1, 40, 0),
    // The number of blocks itself is the bug.
    {"blocks_beyond_32_bits",
     [](bool bug, const float* x, float* y) {
       const int64_t blocks = bug ? (int64_t{1} << 32) + kBlocks : kBlocks;
       ABCKD_LAUNCH(load_out_of_bounds<false>, blocks, kThreads, 0, nullptr, x, y);
     }},
};

}  // namespace planted

extern "C" const char* planted_kind(int index) {
  return index < static_cast<int>(std::size(planted::all)) ? planted::all[index].kind : nullptr;
}

extern "C" const char* run_planted(const char* kind, bool bug, const float* x, float* y) {
  return simt::message_of([&] {
    for (const planted::Planted& planted : planted::all) {
      if (std::strcmp(planted.kind, kind) == 0) return planted.run(bug, x, y);
    }
    throw simt::Error(std::string("no such kind: ") + kind);
  });
}
