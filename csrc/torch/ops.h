// Every op.
#pragma once
#include "compress.h"
#include "divergence.h"
#include "tap.h"
