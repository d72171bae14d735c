// What the program runs, by subject.
#pragma once

#include "common.h"

namespace torch_gas::tests {

// All calls, for every pair of types.
void all_moves(Random& random);

// Calls through a buffer that is much smaller than what goes through it.
void staged(Random& random);

// The same epoch on page-locked and on device tables.
void in_place(Random& random, Place place);

// Memory is page-locked while kernels of a device may use it, and no longer.
void registration(Random& random, int device);

// Calls on another device than the current one, which stays current.
void devices(Random& random);

// What must be refused, and what a kernel finds out.
void errors(Random& random);

}  // namespace torch_gas::tests
