// Arithmetic that CUDA has and <cmath> has not. What <cmath> has (expf, fmaf, ...) is taken from there.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using Common = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Common>) return std::fmin(static_cast<Common>(a), static_cast<Common>(b));
  else return static_cast<Common>(b) < static_cast<Common>(a) ? b : a;
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using Common = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Common>) return std::fmax(static_cast<Common>(a), static_cast<Common>(b));
  else return static_cast<Common>(a) < static_cast<Common>(b) ? b : a;
}

namespace simt {

template <typename To, typename From>
inline __attribute__((always_inline)) To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace simt

inline unsigned __float_as_uint(float x) { return simt::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return simt::bits_as<float>(x); }
inline int __float_as_int(float x) { return simt::bits_as<int>(x); }
inline float __int_as_float(int x) { return simt::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return simt::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::bits_as<double>(x); }

// Templates, because newer C libraries declare functions of these names, which then win.
template <typename = void>
float rsqrtf(float x) {
  return 1 / std::sqrt(x);
}
template <typename = void>
double rsqrt(double x) {
  return 1 / std::sqrt(x);
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
