// Every op.
#pragma once
#include "compress.h"
#include "pointwise.h"
#include "tap.h"
