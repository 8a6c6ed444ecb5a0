// Kernels without bugs: what they compute, what is counted of them, what their launches are called.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "simt.h"

namespace planted {

__device__ __forceinline__ int element() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// ---- traffic

__global__ void copy(const float* x, float* y, int n, int first) {
  const int i = element() + first;
  if (i < n) y[i] = x[i];
}

__global__ void copy_by_16(const float* x, float* y, int n) {
  const int i = element();
  if (4 * i < n) __stcs(reinterpret_cast<float4*>(y) + i, __ldg(reinterpret_cast<const float4*>(x) + i));
}

__global__ void strided(const float* x, float* y, int stride) {
  y[element()] = x[element() * stride];
}

__global__ void broadcast(const float* x, float* y) { y[element()] = *x; }

// Thread i runs through i % 32 + 1 iterations.
__global__ void triangle(const float* x, float* y) {
  float sum = 0;
  for (unsigned step = 0; step <= threadIdx.x % 32; ++step) sum += x[step * 32 + threadIdx.x % 32];
  y[element()] = sum;
}

__device__ __attribute__((noinline)) float fetch(const float* x) { return *x; }

// Constants are no buffer, and may be read.
constexpr float kPowers[] = {1, 2, 4, 8};
__global__ void constants(float* y) { y[threadIdx.x] = fetch(kPowers + threadIdx.x % 4); }

// Lanes skip iterations and calls; a warp has a request for each iteration and each call.
__global__ void skipping(const float* x, float* y) {
  const unsigned lane = threadIdx.x;
  float sum = 0;
  for (unsigned step = 0; step < 8; ++step) {
    if ((lane + step) % 2) sum += x[step * 32 + lane];
  }
  if (lane % 2) sum += fetch(x + lane);
  sum += fetch(x + 32 + lane);
  y[lane] = sum;
}

// Lanes run through the inner loop 0 to 3 times.
__global__ void nested(const float* x, float* y) {
  float sum = 0;
  for (unsigned outer = 0; outer < 4; ++outer) {
    for (unsigned inner = 0; inner < threadIdx.x % 4; ++inner) sum += x[(outer * 4 + inner) * 32 + threadIdx.x];
    sum *= x[outer];
  }
  y[threadIdx.x] = sum;
}

// A tile of 32 x 32 by 32 x 8 threads.
template <typename T>
__global__ void transpose(const T* x, T* y, int n) {
  ABCKD_SHARED(T, tile, 32 * 33);
  const int column = static_cast<int>(blockIdx.x * 32 + threadIdx.x), row = static_cast<int>(blockIdx.y * 32 + threadIdx.y);
  for (int i = 0; i < 32; i += 8) tile[(threadIdx.y + i) * 33 + threadIdx.x] = x[(row + i) * n + column];
  __syncthreads();
  const int to_column = static_cast<int>(blockIdx.y * 32 + threadIdx.x), to_row = static_cast<int>(blockIdx.x * 32 + threadIdx.y);
  for (int i = 0; i < 32; i += 8) y[(to_row + i) * n + to_column] = tile[threadIdx.x * 33 + threadIdx.y + i];
}

// ---- warps and blocks

template <typename T>
__device__ T warp_sum(T value) {
  for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

template <typename T>
__device__ T block_sum(T value) {
  ABCKD_SHARED(T, sums, 32);
  value = warp_sum(value);
  __syncthreads();  // sums may still be read by a call before
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += sums[warp];
  return total;
}

// Sum and sum of squares of each block.
template <typename T>
__global__ void __launch_bounds__(256) sums(const T* x, T* y) {
  const T value = x[element()];
  const T sum = block_sum(value), squares = block_sum(value * value);
  if (threadIdx.x == 0) {
    y[2 * blockIdx.x] = sum;
    y[2 * blockIdx.x + 1] = squares;
  }
}

__global__ void reverse(const float* x, float* y) {
  ABCKD_DYNAMIC_SHARED(float, row);
  row[threadIdx.x] = x[element()];
  __syncthreads();
  y[element()] = row[blockDim.x - 1 - threadIdx.x];
}

// One row of 32 results per form.
template <typename T>
__global__ void shuffles(const T* x, T* y) {
  const int lane = static_cast<int>(threadIdx.x);
  const T value = x[lane];
  T* row = y + lane;
  const auto next = [&](T result) { *row = result, row += 32; };
  next(__shfl_sync(0xffffffffu, value, 5));
  next(__shfl_sync(0xffffffffu, value, lane + 1, 8));
  next(__shfl_up_sync(0xffffffffu, value, 3));
  next(__shfl_up_sync(0xffffffffu, value, 3, 16));
  next(__shfl_down_sync(0xffffffffu, value, 3));
  next(__shfl_down_sync(0xffffffffu, value, 3, 16));
  next(__shfl_xor_sync(0xffffffffu, value, 9));
  next(__shfl_xor_sync(0xffffffffu, value, 9, 8));
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  next(__shfl_xor_sync(half, value, 15));
}

__global__ void votes(const unsigned* x, unsigned* y) {
  const unsigned bit = x[threadIdx.x] & 1;
  unsigned* row = y + threadIdx.x;
  row[0] = __ballot_sync(0xffffffffu, bit);
  row[32] = __any_sync(0xffffffffu, bit);
  row[64] = __all_sync(0xffffffffu, bit);
}

// y: sum, largest, smallest, and what compare-and-swap and exchange leave.
__global__ void atomics(const int* x, int* y) {
  const int value = x[element()];
  atomicAdd(&y[0], value);
  atomicMax(&y[1], value);
  atomicMin(&y[2], value);
  atomicCAS(&y[3], 0, 7);
  atomicExch(&y[4], 9);
}

// Which sum it is depends on the order.
__global__ void sum_in_any_order(const float* x, float* y) { atomicAdd(y, x[element()]); }

// When each thread ran.
__global__ void tickets(int* y) { y[1 + element()] = atomicAdd(y, 1); }

__global__ void indices(int* y) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned digits = (blockIdx.z * 100 + blockIdx.y * 10 + blockIdx.x) * 1000 +
                          (threadIdx.z * 100 + threadIdx.y * 10 + threadIdx.x);
  y[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<int>(digits);
}

// ---- number formats

__global__ void widen(const unsigned short* bits, float* half, float* bfloat16) {
  half[element()] = __half2float(__ushort_as_half(bits[element()]));
  bfloat16[element()] = __bfloat162float(__ldg(reinterpret_cast<const __nv_bfloat16*>(bits) + element()));
}

__global__ void narrow(const float* x, unsigned short* half, unsigned short* bfloat16) {
  half[element()] = __half_as_ushort(__float2half_rn(x[element()]));
  bfloat16[element()] = __bfloat16_as_ushort(__float2bfloat16_rn(x[element()]));
}

template <typename T>
void launch_transpose(const T* x, T* y, int n) {
  const auto kernel = transpose<T>;
  ABCKD_LAUNCH(kernel, dim3(n / 32, n / 32), dim3(32, 8), 0, nullptr, x, y, n);
}

}  // namespace planted

#define EXPORT(function, parameters, ...) \
  extern "C" const char* function parameters { return simt::message_of([&] { __VA_ARGS__; }); }

using namespace planted;

EXPORT(run_copy, (const float* x, float* y, int n, int first, int blocks, int threads),
       ABCKD_LAUNCH(copy, blocks, threads, 0, nullptr, x, y, n, first))
EXPORT(run_copy_by_16, (const float* x, float* y, int n, int blocks, int threads),
       ABCKD_LAUNCH(copy_by_16, blocks, threads, 0, nullptr, x, y, n))
EXPORT(run_strided, (const float* x, float* y, int n, int stride), ABCKD_LAUNCH(strided, n / 32, 32, 0, nullptr, x, y, stride))
EXPORT(run_broadcast, (const float* x, float* y, int n), ABCKD_LAUNCH(broadcast, n / 32, 32, 0, nullptr, x, y))
EXPORT(run_triangle, (const float* x, float* y), ABCKD_LAUNCH(triangle, 1, 64, 0, nullptr, x, y))
EXPORT(run_skipping, (const float* x, float* y), ABCKD_LAUNCH(skipping, 1, 32, 0, nullptr, x, y))
EXPORT(run_nested, (const float* x, float* y), ABCKD_LAUNCH(nested, 1, 32, 0, nullptr, x, y))
EXPORT(run_constants, (float* y), ABCKD_LAUNCH(constants, 1, 32, 0, nullptr, y))
EXPORT(run_transpose, (const float* x, float* y, int n), launch_transpose(x, y, n))
EXPORT(run_transpose_double, (const double* x, double* y, int n), launch_transpose(x, y, n))
EXPORT(run_sums, (const float* x, float* y, int blocks), ABCKD_LAUNCH((sums<float>), blocks, 256, 0, nullptr, x, y))
EXPORT(run_reverse, (const float* x, float* y, int threads),
       ABCKD_LAUNCH(reverse, 2, threads, threads * sizeof(float), nullptr, x, y))
EXPORT(run_shuffles_float, (const float* x, float* y), ABCKD_LAUNCH(shuffles<float>, 1, 32, 0, nullptr, x, y))
EXPORT(run_shuffles_double, (const double* x, double* y), ABCKD_LAUNCH(shuffles<double>, 1, 32, 0, nullptr, x, y))
EXPORT(run_shuffles_int, (const int* x, int* y), ABCKD_LAUNCH(shuffles<int>, 1, 32, 0, nullptr, x, y))
EXPORT(run_shuffles_int64, (const int64_t* x, int64_t* y), ABCKD_LAUNCH(shuffles<int64_t>, 1, 32, 0, nullptr, x, y))
EXPORT(run_votes, (const unsigned* x, unsigned* y), ABCKD_LAUNCH(votes, 1, 32, 0, nullptr, x, y))
EXPORT(run_atomics, (const int* x, int* y, int blocks), ABCKD_LAUNCH(atomics, blocks, 32, 0, nullptr, x, y))
EXPORT(run_sum_in_any_order, (const float* x, float* y, int n), ABCKD_LAUNCH(sum_in_any_order, n / 32, 32, 0, nullptr, x, y))
EXPORT(run_tickets, (int* y, int blocks), ABCKD_LAUNCH(tickets, blocks, 32, 0, nullptr, y))
EXPORT(run_indices, (int* y), ABCKD_LAUNCH(indices, dim3(2, 3, 4), dim3(3, 4, 5), 0, nullptr, y))
EXPORT(run_widen, (const unsigned short* bits, float* half, float* bfloat16, int n),
       ABCKD_LAUNCH(widen, n / 32, 32, 0, nullptr, bits, half, bfloat16))
EXPORT(run_narrow, (const float* x, unsigned short* half, unsigned short* bfloat16, int n),
       ABCKD_LAUNCH(narrow, n / 32, 32, 0, nullptr, x, half, bfloat16))

// As a launcher of the library: a status that the launch left. The buffers are registered here.
extern "C" int status_of_copy(const float* x, float* y, int n, int64_t blocks, int threads, int64_t shared_bytes) {
  simt::Buffers buffers;
  buffers.readable("x", x, static_cast<size_t>(n) * sizeof(float));
  buffers.writable("y", y, static_cast<size_t>(n) * sizeof(float));
  ABCKD_LAUNCH(copy, blocks, threads, static_cast<size_t>(shared_bytes), nullptr, x, y, n, 0);
  return cudaGetLastError();
}
