// Sparse matrices times dense rows, with a weight for each entry and head, and the gradient of the
// weights. `I` is int32_t or int64_t, `T` float or double. Nothing is written before every argument
// has been checked. A row is summed up in the order of its entries by one thread.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace torch_gas {

// A CSR matrix [num_rows, num_cols]. The numbers that belong to entry e, [nnz, heads] below, are
// those at position order[e], or e where `order` is null: a matrix and its transpose share them.
// Some rows of a matrix have fewer entries than there are numbers. Where `end` is given, which only
// `product` reads, row r has the entries rowptr[r] .. end[r] - 1, and others lie between rows.
template <class I>
struct Sparse {
  const I* rowptr;  // [num_rows + 1]
  const I* col;     // [nnz]
  const I* order;   // [nnz] or null
  int64_t num_rows;
  int64_t num_cols;
  int64_t nnz;
  int64_t num_numbers;
  const I* end = nullptr;  // [num_rows] or null
};

// out[i, h, :] = sum over the entries e of row i of weight[e, h] * rows[col[e], h, :], with
// ones for `weight` if it is null, and divided by the number of entries for the `mean`. It is zero
// where `gate`, if there is one, is not positive. Rows `R` of bfloat16 are summed up in float, and
// the sums are rounded once. rows [num_cols, heads, width], gate, out [num_rows, heads, width].
template <class I, class R, class T>
void product(const Sparse<I>& matrix, const T* weight, const R* rows, const R* gate, R* out,
             int64_t heads, int64_t width, bool mean, int threads);

// out[e, h] = the dot product of left[i, h, :] and right[col[e], h, :], for each entry e of
// row i. left [num_rows, heads, width], right [num_cols, heads, width], out [nnz, heads].
template <class I, class T>
void entry_dots(const Sparse<I>& matrix, const T* left, const T* right, T* out, int64_t heads,
                int64_t width, int threads);

// out[e, h] = exp(s[e, h]) / the sum of these over row i, with s[e, h] = leaky_relu(left[i, h] +
// right[col[e], h]). left [num_rows, heads], right [num_cols, heads], out [nnz, heads].
template <class I, class T>
void entry_softmax(const Sparse<I>& matrix, const T* left, const T* right, T slope, T* out,
                   int64_t heads, int threads);

// The gradients of the above, of `left` [num_rows, heads] and of left[i, h] + right[col[e], h] for
// each entry, [nnz, heads], which may be `grad`. softmax, grad [nnz, heads].
template <class I, class T>
void entry_softmax_backward(const Sparse<I>& matrix, const T* left, const T* right, T slope,
                            const T* softmax, const T* grad, T* grad_left, T* grad_entry,
                            int64_t heads, int threads);

}  // namespace torch_gas
