#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace abckd::cpu {

extern const Kernels kBaseline;
#ifdef ABCKD_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

namespace {

#ifdef ABCKD_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const Kernels& choose() {
  std::vector<const Kernels*> able;  // best first
#ifdef ABCKD_X86
  __builtin_cpu_init();
  if (has_avx512()) able.push_back(&kAvx512);
  if (has_avx2()) able.push_back(&kAvx2);
#endif
  able.push_back(&kBaseline);
  const char* wish = std::getenv("ABCKD_CPU_ISA");
  if (wish == nullptr) return *able.front();
  std::string names;
  for (const Kernels* kernels : able) {
    if (std::string(wish) == kernels->isa) return *kernels;
    names += std::string(" ") + kernels->isa;
  }
  throw std::runtime_error(std::string("ABCKD_CPU_ISA=") + wish + " can't be used; this processor and build have:" + names);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace abckd::cpu
