// The integer peak of this machine, for benchmarks: nothing is computed.
#pragma once
#include "varax.h"

// Multiply-adds of bytes, `steps` times eight vectors; returns operations done (2 per multiply-add).
VARAX_DECLARE(double peak_int8(int64_t steps, int32_t* out);)
