// The kernels for any processor that the compiler targets by default (x86-64: SSE2; elsewhere: what it has).
#include "prelude.h"
#define ABCKD_ISA baseline
#define ABCKD_VECTOR_BYTES 16
#define ABCKD_TABLE kBaseline
#include "all_kernels.inl"
