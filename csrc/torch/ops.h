// Every op.
#pragma once
#include "compress.h"
#include "dots.h"
#include "gram.h"
#include "tap.h"
