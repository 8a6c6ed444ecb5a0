// Atomics: relaxed, on global and shared memory. They return what was there before.
#pragma once
#include "runtime.h"

namespace simt {

template <typename T, typename Change>
inline __attribute__((always_inline)) T atomic(T* address, Change change) {
  T old;
  atomic_load(address, &old, sizeof(T));
  T now = change(old);
  atomic_store(address, &now, sizeof(T));
  return old;
}

}  // namespace simt

template <typename T>
inline __attribute__((always_inline)) T atomicAdd(T* address, T value) {
  // Integers wrap, as they do on the GPU.
  return simt::atomic(address, [value](T old) {
    T sum;
    if constexpr (static_cast<T>(0.5) == 0) __builtin_add_overflow(old, value, &sum);
    else sum = old + value;
    return sum;
  });
}
template <typename T>
inline __attribute__((always_inline)) T atomicMax(T* address, T value) {
  return simt::atomic(address, [value](T old) { return old < value ? value : old; });
}
template <typename T>
inline __attribute__((always_inline)) T atomicMin(T* address, T value) {
  return simt::atomic(address, [value](T old) { return value < old ? value : old; });
}
template <typename T>
inline __attribute__((always_inline)) T atomicExch(T* address, T value) {
  return simt::atomic(address, [value](T) { return value; });
}
template <typename T>
inline __attribute__((always_inline)) T atomicCAS(T* address, T expected, T value) {
  return simt::atomic(address, [expected, value](T old) { return old == expected ? value : old; });
}
