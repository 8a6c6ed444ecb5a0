// The words of the language: qualifiers, built-in indices, block-shared arrays and the block's barrier.
#pragma once
#include "runtime.h"
#include "vectors.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// const: g++ leaves reads of plain constants alone, so that they cost nothing. The runtime sets them when it changes threads.
extern const uint3 threadIdx __asm__("simt_thread_index");
extern const uint3 blockIdx __asm__("simt_block_index");
extern const uint3 blockDim __asm__("simt_block_size");
extern const uint3 gridDim __asm__("simt_grid_size");
constexpr int warpSize = 32;

// The address of `name##_place` tells the arrays of different code places, and of different template instances, apart.
#define ABCKD_SHARED(type, name, count) \
  static char name##_place;             \
  type* const name = static_cast<type*>(::simt::shared_array(#name, &name##_place, sizeof(type) * (count), alignof(type)))

#define ABCKD_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::simt::dynamic_shared_array())

inline void __syncthreads(simt::Place place = simt::Place::here()) { simt::sync_block(place); }
