// Stands in for CUDA's <cuda_runtime.h> when g++ compiles device code for the emulator. One header per family:
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "simt/atomics.h"
#include "simt/errors.h"
#include "simt/language.h"
#include "simt/launch.h"
#include "simt/math.h"
#include "simt/memory.h"
#include "simt/vectors.h"
#include "simt/warp.h"
