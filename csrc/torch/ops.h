// Every op.
#pragma once
#include "compress.h"
#include "pointwise.h"
#include "project.h"
#include "tap.h"
