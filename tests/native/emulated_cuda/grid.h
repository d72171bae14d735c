// Runs a kernel over its grid.
#pragma once

#include <cuda_runtime.h>

#include "random.h"

namespace emulated {

// Runs every thread of the grid: blocks and the warps of a block in random order, a warp's lanes up
// to where they meet in a shuffle. Returns what failed, if anything: an assertion,
// or lanes that miss a shuffle.
const char* run_grid(const Kernel& kernel, dim3 grid, dim3 block, Random& random);

}  // namespace emulated
