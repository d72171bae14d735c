// Several reductions of the rows that the entries of a sparse matrix lead to, and their gradient.
// `I` is int32_t or int64_t, `T` float or double. Nothing is written before every argument has been
// checked. A row is computed in the order of its entries by one thread.
#pragma once

#include <cstdint>

#include "product.h"

namespace torch_gas {

// What is computed of the rows rows[col[e]] of each row of a matrix, for each column: [num_rows,
// width] each, or null. A row without entries has zeros everywhere.
template <class T>
struct Reductions {
  T* mean;
  T* variance;    // the mean of the squared differences from `mean`, which must not be null
  T* least;       // the smallest number, NaN if there is one
  T* least_ties;  // how many entries have it; not null where `least` is not
  T* most;        // the same of the largest
  T* most_ties;
};

// rows [num_cols, width].
template <class I, class T>
void reductions(const Sparse<I>& matrix, const T* rows, const Reductions<T>& out, int64_t width,
                int threads);

// What the gradient of a row x consists of, summed up over those that x was reduced to:
// constant + slope * x, and further numbers where x is the smallest or the largest. [num_cols,
// width] each, or null; a number and its gradient are both null or none is.
template <class T>
struct ReductionsGradient {
  const T* constant;
  const T* slope;
  const T* least;
  const T* grad_least;
  const T* most;
  const T* grad_most;
};

// `matrix` is the transpose of the one above, or its first rows. rows, out [num_rows, width].
template <class I, class T>
void reductions_backward(const Sparse<I>& matrix, const T* rows, const ReductionsGradient<T>& grad,
                         T* out, int64_t width, int threads);

}  // namespace torch_gas
