// Every op.
#pragma once
#include "compress.h"
#include "tap.h"
