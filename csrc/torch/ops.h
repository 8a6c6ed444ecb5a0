// Every op.
#pragma once
#include "compress.h"
#include "project.h"
#include "tap.h"
