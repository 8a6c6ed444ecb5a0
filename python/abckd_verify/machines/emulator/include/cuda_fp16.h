// float16 as bits, with CUDA's names for its conversions.
#pragma once
#include "cuda_runtime.h"

struct __half_raw {
  unsigned short x;
};

struct alignas(2) __half {
  unsigned short bits;
  __half() = default;
  constexpr __half(__half_raw raw) : bits(raw.x) {}
};
typedef __half half;

inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }

// 1 + 5 + 10 bits, exponents biased by 15. A subnormal is a multiple of 2^-24.
inline float __half2float(__half h) {
  const unsigned sign = (h.bits & 0x8000u) << 16, exponent = (h.bits >> 10) & 0x1f, mantissa = h.bits & 0x3ff;
  if (exponent == 0x1f) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return __uint_as_float(sign | (exponent + (127 - 15)) << 23 | mantissa << 13);
  const float value = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -value : value;
}

// To the nearest, ties to even; beyond 65504 + half a step to infinity. NaN becomes CUDA's one NaN.
inline __half __float2half_rn(float x) {
  const unsigned all = __float_as_uint(x), sign = all >> 16 & 0x8000u, magnitude = all & 0x7fffffffu;
  unsigned bits;
  if (magnitude > 0x7f800000u) return __ushort_as_half(0x7fff);
  if (magnitude >= 0x477ff000u) {
    bits = 0x7c00;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 steps are 2^-24: adding 0.5 leaves just these in a float's mantissa, and the addition rounds.
    bits = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    const unsigned odd = magnitude >> 13 & 1;
    bits = (magnitude - ((127u - 15) << 23) + 0xfff + odd) >> 13;
  }
  return __ushort_as_half(static_cast<unsigned short>(sign | bits));
}

inline __half __float2half(float x) { return __float2half_rn(x); }
