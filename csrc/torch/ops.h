// Every op.
#pragma once
#include "compress.h"
#include "divergence.h"
#include "dots.h"
#include "gram.h"
#include "pointwise.h"
#include "project.h"
#include "spectral.h"
#include "tap.h"
