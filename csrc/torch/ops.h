// Every op.
#pragma once
#include "compress.h"
#include "gram.h"
#include "tap.h"
