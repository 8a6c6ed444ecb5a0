// Everything that the kernel files include, before any of them switches the instruction set: an inline function of a standard header
// that was compiled for AVX-512 could otherwise be the copy that the linker keeps for the whole library.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

#if defined(ABCKD_X86)
#include <immintrin.h>
#endif

#include "abckd/windows.h"
#include "kernels.h"

#if defined(__clang__)
#define ABCKD_PRAGMA(text) _Pragma(#text)
#define ABCKD_BEGIN_TARGET(isa) ABCKD_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define ABCKD_END_TARGET _Pragma("clang attribute pop")
#else
#define ABCKD_PRAGMA(text) _Pragma(#text)
#define ABCKD_BEGIN_TARGET(isa) _Pragma("GCC push_options") ABCKD_PRAGMA(GCC target(isa))
#define ABCKD_END_TARGET _Pragma("GCC pop_options")
#endif
