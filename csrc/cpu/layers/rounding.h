// Sums of float32 that become arrays of bfloat16.
#pragma once
#include "common/arguments.h"

namespace fusedrnn {

// to[i] = from[i], or with `adding` to[i] + from[i], rounded once; on a team where there is much to round.
void round_sums(const float* from, Bfloat16* to, Index count, bool adding);

}  // namespace fusedrnn
