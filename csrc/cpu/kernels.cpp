#include "kernels.h"

namespace abckd::cpu {

extern const Kernels kBaseline;
#ifdef ABCKD_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

const Kernels& kernels() {
#ifdef ABCKD_X86
  static const Kernels& best = [] () -> const Kernels& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      return kAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return kAvx2;
    return kBaseline;
  }();
  return best;
#else
  return kBaseline;
#endif
}

}  // namespace abckd::cpu
