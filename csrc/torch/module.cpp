// The pybind11 module: loading it registers the kernels; it gives the ops their derivatives and says what was built.
#include <torch/csrc/utils/pybind.h>

#include <pybind11/functional.h>

#include <functional>
#include <string>

#include "../cpu/kernels.h"
#include "autograd.h"

namespace py = pybind11;

namespace {

// setup.py names the compute capabilities that csrc/cuda was compiled for; none where it was not.
constexpr bool kHasCuda = sizeof(ABCKD_CUDA_ARCHITECTURES) > 1;

py::dict build_info() {
  py::dict info;
  info["CPU instruction set"] = abckd::cpu::kernels().isa;
  info["CUDA kernels"] = kHasCuda ? "for " ABCKD_CUDA_ARCHITECTURES : "not built";
  return info;
}

// `choose(kernel, device type)` is Python's, and is never destroyed: ops outlive the interpreter. The dispatcher calls
// ops without the GIL, which the conversion to std::function takes for each call.
void differentiate(const std::string& op, const std::function<std::string(std::string, std::string)>& choose) {
  const auto* ask = new std::function<std::string(std::string, std::string)>(choose);
  abckd::differentiate(op, [ask](const std::string& kernel, c10::DeviceType device) {
    return (*ask)(kernel, c10::DeviceTypeName(device, /*lower_case=*/true));
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "Kernels of abckd_kernels, and the derivatives of its ops";
  module.def("differentiate", &differentiate,
             "op, choose: abckd::<op> becomes <op>_forward with the derivative <op>_backward; choose(kernel, device)"
             " names the overload that runs");
  module.attr("has_cuda") = kHasCuda;
  module.def("build_info", &build_info, "what was built, as a dict of strings");
}
