// Every op.
#pragma once
#include "compress.h"
#include "pointwise.h"
#include "gram.h"
#include "spectral.h"
#include "divergence.h"
#include "project.h"
#include "tap.h"
