// Runs a kernel over its grid.
#pragma once

#include <cuda_runtime.h>

#include <random>
#include <string>

namespace emulated {

// Runs every thread of the grid: blocks and the warps of a block in random order, a warp's lanes up
// to where they meet in a shuffle. Returns what failed: an assertion, or lanes that miss a shuffle.
std::string run_grid(const Kernel& kernel, dim3 grid, dim3 block, std::mt19937_64& random);

}  // namespace emulated
