// Loads and stores with a cache policy. Whatever the type, each is one access of its size, as on the GPU.
#pragma once
#include "runtime.h"

#define SIMT_LOAD(name)                                                    \
  template <typename T>                                                    \
  inline __attribute__((always_inline)) T name(const T* from) {            \
    T value;                                                               \
    simt::load(from, &value, sizeof(T));                                   \
    return value;                                                          \
  }
#define SIMT_STORE(name)                                                   \
  template <typename T>                                                    \
  inline __attribute__((always_inline)) void name(T* to, T value) {        \
    simt::store(to, &value, sizeof(T));                                    \
  }

SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldlu)
SIMT_STORE(__stwb)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwt)

#undef SIMT_LOAD
#undef SIMT_STORE
