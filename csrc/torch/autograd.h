// The derivative of every op, from the names in its kernels' schemas.
#pragma once
#include <c10/core/Device.h>

#include <functional>
#include <string>

namespace abckd {

// The overload of a kernel such as "tap_forward" that serves a device: "" for the native one, else the backend's name.
using Choose = std::function<std::string(const std::string& kernel, c10::DeviceType device)>;

// Gives `abckd::<op>` its implementation: the kernel `<op>_forward` with the derivative `<op>_backward`. All three have
// their schemas by then. What the names mean: abckd_kernels/ops/contract.py, whose Python form this is where there is a
// compiler.
void differentiate(const std::string& op, Choose choose);

}  // namespace abckd
