// bfloat16 as bits, with CUDA's names for its conversions.
#pragma once
#include "cuda_runtime.h"

struct __nv_bfloat16_raw {
  unsigned short x;
};

struct alignas(2) __nv_bfloat16 {
  unsigned short bits;
  __nv_bfloat16() = default;
  constexpr __nv_bfloat16(__nv_bfloat16_raw raw) : bits(raw.x) {}
};
typedef __nv_bfloat16 nv_bfloat16;

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16_raw{bits}; }

// The upper half of a float.
inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float(static_cast<unsigned>(h.bits) << 16); }

// To the nearest, ties to even; a carry out of the mantissa is the right exponent, infinity included. NaN becomes CUDA's one NaN.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const unsigned all = __float_as_uint(x);
  if ((all & 0x7fffffffu) > 0x7f800000u) return __ushort_as_bfloat16(0x7fff);
  return __ushort_as_bfloat16(static_cast<unsigned short>((all + 0x7fff + (all >> 16 & 1)) >> 16));
}

inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
