// Compiled once per instruction set, inside a namespace of its own. Needs ABCKD_ISA, ABCKD_VECTOR_BYTES, ABCKD_TABLE.
#include "vector.inl"
#include "dispatch.inl"
#include "exponential.inl"
#include "power.inl"
#include "tap.inl"
#include "compress.inl"
#include "divergence.inl"
#include "dots.inl"
#include "gram.inl"
#include "pointwise.inl"
#include "project.inl"
#include "spectral.inl"

namespace abckd::cpu {
extern const Kernels ABCKD_TABLE;
const Kernels ABCKD_TABLE = {
#define ABCKD_TEXT(name) #name
#define ABCKD_NAME(name) ABCKD_TEXT(name)
    ABCKD_NAME(ABCKD_ISA),
#define ABCKD_ENTRY(kernel, Arguments) ABCKD_ISA::kernel,
    ABCKD_KERNELS(ABCKD_ENTRY)
#undef ABCKD_ENTRY
};
}  // namespace abckd::cpu
