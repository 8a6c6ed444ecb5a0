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
    ABCKD_ISA::tap_forward,        ABCKD_ISA::tap_backward,
    ABCKD_ISA::compress_forward,   ABCKD_ISA::compress_backward,
    ABCKD_ISA::divergence_forward, ABCKD_ISA::divergence_backward,
    ABCKD_ISA::dots_forward,       ABCKD_ISA::dots_backward,
    ABCKD_ISA::gram_forward,       ABCKD_ISA::gram_backward,
    ABCKD_ISA::pointwise_forward,  ABCKD_ISA::pointwise_backward,
    ABCKD_ISA::project_forward,    ABCKD_ISA::project_backward,
    ABCKD_ISA::spectral_forward,   ABCKD_ISA::spectral_backward,
};
}  // namespace abckd::cpu
