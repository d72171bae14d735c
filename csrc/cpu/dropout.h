// Dropout with a counter-based generator.
//
// The random number of an element depends on the seed and its position, or the id of its row, only:
// threads need not take turns, and the mask can be drawn again instead of being kept.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace torch_gas {

// out[i] = x[i] * (r >= p * 2^32 ? 1 / (1 - p) : 0), where r is word i % 4 of what Philox4x32-10
// gives for the key `seed` and the counter i / 4; 1 / (1 - p) counts as 0 if p is 1. The threshold
// is rounded to an integer. 16-bit types are multiplied in float. `out` may be `x`, but must not
// overlap with it otherwise.
void dropout(const char* x, char* out, DType dtype, int64_t size, double p, uint64_t seed,
             int threads);

// The same for rows [num_rows, width], where r is word c % 4 for channel c of a row, the key `key`
// and the counter whose first two words are the row's id, and the third is c / 4.
void dropout_rows(const char* x, const int64_t* ids, char* out, DType dtype, int64_t num_rows,
                  int64_t width, double p, uint64_t key, int threads);

}  // namespace torch_gas
