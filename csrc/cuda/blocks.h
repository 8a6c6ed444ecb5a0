// What every launcher needs to know.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "abckd/arguments.h"

namespace abckd::cuda {

constexpr int64_t kParameterBytes = 4096;  // of a kernel, on every driver

inline int64_t divided(int64_t x, int64_t y) { return (x + y - 1) / y; }

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// More blocks than one launch can have.
inline bool too_many(int64_t blocks) { return blocks > int64_t{0x7fffffff}; }

// The status of launch(element), with a value of the type that `dtype` is.
template <typename Launch>
cudaError_t with_element(Dtype dtype, const Launch& launch) {
  switch (dtype) {
    case Dtype::f32: return launch(float());
    case Dtype::f64: return launch(double());
    case Dtype::bf16: return launch(__nv_bfloat16());
    case Dtype::f16: return launch(__half());
  }
  return cudaErrorInvalidValue;
}

}  // namespace abckd::cuda
