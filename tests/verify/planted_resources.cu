// Kernels that do what ours must not, one thing each, and one that does everything right: the gates must tell them apart.
#include <cuda_runtime.h>

#include <cstdint>

// 16 bytes per thread and step, from `rows` rows; nothing else.
__global__ void __launch_bounds__(128) tap_right_kernel(const float4* x, float4* sums, int rows, int columns) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float4 sum = {};
#pragma unroll 4
  for (int row = 0; row < rows; ++row) {
    const float4 value = __ldg(x + int64_t(row) * columns + column);
    sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
  }
  sums[column] = sum;
}

// 64 numbers are needed at once, and the launch bounds leave 32 registers.
__global__ void __launch_bounds__(1024, 2) tap_spilling_kernel(const float4* x, float4* sums, int rows, int columns) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float4 sum[16] = {};
  for (int row = 0; row < rows; ++row) {
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const float4 value = __ldg(x + (int64_t(row) * 16 + k) * columns + column);
      sum[k].x += value.x, sum[k].y += value.y, sum[k].z += value.z, sum[k].w += value.w;
    }
  }
#pragma unroll
  for (int k = 0; k < 16; ++k) sums[k * columns + column] = sum[k];
}

// Registers have no index that is known at run time only.
__global__ void __launch_bounds__(128) tap_local_array_kernel(const float4* x, float4* sums, int rows, int columns) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float4 sum[8] = {};
  for (int row = 0; row < rows; ++row) {
    const float4 value = __ldg(x + int64_t(row) * columns + column);
    sum[(row * columns) % 8].x += value.x;
  }
  for (int k = 0; k < 8; ++k) sums[k * columns + column] = sum[k];
}

__global__ void __launch_bounds__(128) tap_waiting_kernel(const float4* x, float4* sums, int rows, int columns) {
  __shared__ float4 shared[128];
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (int row = 0; row < rows; ++row) {
    shared[threadIdx.x] = __ldg(x + int64_t(row) * columns + column);
    __syncthreads();
    sum += shared[127 - threadIdx.x].x;
    __syncthreads();
  }
  sums[column].x = sum;
}

// The inner loop doesn't wait, the one around it does.
__global__ void __launch_bounds__(128) tap_waiting_outside_kernel(const float4* x, float4* sums, int rows, int columns) {
  __shared__ float4 shared[128];
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  for (int sample = 0; sample < columns; ++sample) {
    float4 sum = {};
    for (int row = 0; row < rows; ++row) {
      const float4 value = __ldg(x + (int64_t(sample) * rows + row) * columns + column);
      sum.x += value.x, sum.y += value.y, sum.z += value.z, sum.w += value.w;
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    sums[int64_t(sample) * columns + column] = shared[127 - threadIdx.x];
    __syncthreads();
  }
}

__global__ void __launch_bounds__(128) tap_narrow_kernel(const float2* x, float2* sums, int rows, int columns) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float2 sum = {};
  for (int row = 0; row < rows; ++row) {
    const float2 value = __ldg(x + int64_t(row) * columns + column);
    sum.x += value.x, sum.y += value.y;
  }
  sums[column] = sum;
}

// Half of the bytes come by 16, half by 4.
__global__ void __launch_bounds__(128) tap_mixed_kernel(const float4* x, float4* sums, int rows, int columns) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (int row = 0; row < rows; row += 2) {
    const float4 even = __ldg(x + int64_t(row) * columns + column);
    const float* odd = reinterpret_cast<const float*>(x + int64_t(row + 1) * columns) + column;
    sum += even.x + even.y + even.z + even.w + __ldg(odd) + __ldg(odd + columns);
  }
  sums[column].x = sum;
}
