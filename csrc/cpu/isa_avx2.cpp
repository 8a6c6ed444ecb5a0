// The kernels for AVX2 with FMA and F16C.
#include "prelude.h"
#ifdef ABCKD_X86
ABCKD_BEGIN_TARGET("avx2,fma,f16c")
#define ABCKD_ISA avx2
#define ABCKD_VECTOR_BYTES 32
#define ABCKD_TABLE kAvx2
#include "all_kernels.inl"
ABCKD_END_TARGET
#endif
