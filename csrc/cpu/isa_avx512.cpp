// The kernels for AVX-512 (F, BW, VL, DQ).
#include "prelude.h"
#ifdef ABCKD_X86
ABCKD_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define ABCKD_ISA avx512
#define ABCKD_VECTOR_BYTES 64
#define ABCKD_TABLE kAvx512
#include "all_kernels.inl"
ABCKD_END_TARGET
#endif
