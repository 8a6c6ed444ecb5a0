// Every op.
#pragma once
#include "compress.h"
#include "spectral.h"
#include "tap.h"
