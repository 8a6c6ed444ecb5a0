// Every op.
#pragma once
#include "compress.h"
#include "pointwise.h"
#include "gram.h"
#include "tap.h"
