// How threads wait.
#pragma once
#include <string>

#include "machine.h"

namespace simt {

// The running thread goes on when its state is ready again.
void wait();
bool same_meeting(const Operation& a, const Operation& b);
std::string describe(const Operation& operation);  // "__shfl_sync at tap.cuh:12 with mask 0x0000ffff"

}  // namespace simt
