// Elements of features and maps in device code: conversion to the type that sums are kept in, and 16 bytes at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace abckd::cuda {

template <typename E>
struct Element {  // float and double
  using Accumulator = E;
  static __device__ E widen(E x) { return x; }
  static __device__ E narrow(E x) { return x; }
};

template <>
struct Element<__half> {
  using Accumulator = float;
  static __device__ float widen(__half x) { return __half2float(x); }
  static __device__ __half narrow(float x) { return __float2half_rn(x); }
};

template <>
struct Element<__nv_bfloat16> {
  using Accumulator = float;
  static __device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }
};

template <typename E>
using Accumulator = typename Element<E>::Accumulator;

// The elements of a row that belong to one lane, out of `width` lanes that share a stretch of the row: neighbours, moved by
// 16 bytes, where kVector says that rows are aligned; else every width-th one, so that lanes still touch neighbours, and at most
// four, because single elements take a register each.
template <typename E, bool kVector>
struct Stretch {
  static constexpr int kCount = kVector || sizeof(E) > 4 ? 16 / sizeof(E) : 4;
  struct Elements {
    E values[kCount];
  };

  int64_t first;  // element 0 of this lane
  int stride;     // between its elements

  __device__ Stretch(int64_t begin, int lane, int width)
      : first(begin + (kVector ? lane * kCount : lane)), stride(kVector ? 1 : width) {}

  __device__ int64_t at(int i) const { return first + i * stride; }

  // How many of the lane's elements lie before `end`; they are its first ones.
  __device__ int before(int64_t end) const {
    int count = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) count += at(i) < end;
    return count;
  }

  // `count` elements and zeros, from the row whose element `first` lane_row points to. With kVector all 16 bytes are read
  // where the lane has any.
  __device__ Elements read(const E* lane_row, int count) const {
    Elements own{};
    if constexpr (kVector) {
      if (count > 0) {
        const uint4 bits = __ldg(reinterpret_cast<const uint4*>(lane_row));
        memcpy(&own, &bits, sizeof(own));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i < count) own.values[i] = __ldg(lane_row + i * stride);
      }
    }
    return own;
  }

  // The same of a row of another type, sums that belong to the elements: without kVector one by one.
  template <typename A>
  __device__ void read_sums(A (&sums)[kCount], const A* lane_row, int count) const {
    constexpr int kAtOnce = kVector ? 16 / sizeof(A) : 1;
#pragma unroll
    for (int i = 0; i < kCount; i += kAtOnce) {
      if constexpr (kVector) {
        const uint4 bits = i < count ? __ldg(reinterpret_cast<const uint4*>(lane_row + i)) : uint4{};
        memcpy(sums + i, &bits, sizeof(bits));
      } else {
        sums[i] = i < count ? __ldg(lane_row + i * stride) : A(0);
      }
    }
  }

  template <typename A>
  __device__ void write_sums(A* lane_row, const A (&sums)[kCount], int count) const {
    constexpr int kAtOnce = kVector ? 16 / sizeof(A) : 1;
#pragma unroll
    for (int i = 0; i < kCount; i += kAtOnce) {
      if constexpr (kVector) {
        uint4 bits;
        memcpy(&bits, sums + i, sizeof(bits));
        if (i < count) __stcg(reinterpret_cast<uint4*>(lane_row + i), bits);
      } else if (i < count) {
        __stcg(lane_row + i * stride, sums[i]);
      }
    }
  }

  // With kVector rows end with a lane, so that it has all elements or none.
  __device__ void write(E* lane_row, const Elements& own, int count) const {
    if constexpr (kVector) {
      uint4 bits;
      memcpy(&bits, &own, sizeof(own));
      if (count > 0) __stcg(reinterpret_cast<uint4*>(lane_row), bits);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i < count) __stcg(lane_row + i * stride, own.values[i]);
      }
    }
  }
};

}  // namespace abckd::cuda
