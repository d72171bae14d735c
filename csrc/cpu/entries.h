// What loops over the entries of a sparse matrix share: checks, prefetches, sums of rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../check.h"
#include "../parallel.h"
#include "../simd.h"
#include "product.h"

namespace torch_gas {

template <class I>
void check_sparse(const char* call, const Sparse<I>& matrix, int threads) {
  check_rowptr(call, matrix.rowptr, 0, matrix.num_rows, matrix.nnz, threads);
  check_value(matrix.rowptr[0] == 0 && matrix.rowptr[matrix.num_rows] == matrix.nnz, call,
              ": `rowptr` must go from 0 to the length of `col` (", matrix.nnz, "), but goes from ",
              matrix.rowptr[0], " to ", matrix.rowptr[matrix.num_rows]);
  check_ids(call, "col", matrix.col, matrix.nnz, matrix.num_cols, threads);
  if (matrix.order != nullptr) {
    check_ids(call, "order", matrix.order, matrix.nnz, matrix.num_numbers, threads);
  }
}

// Rows of the result that are worth waking a thread for.
template <class I>
int64_t rows_grain(const Sparse<I>& matrix, int64_t num_columns) {
  const int64_t entries = matrix.nnz / std::max<int64_t>(1, matrix.num_rows) + 1;
  return std::max<int64_t>(1, kGrain / (entries * (num_columns + 1)));
}

// Asks for a row of `bytes` bytes, which is far from the last one, while others are added up.
TORCH_GAS_LOOP void prefetch(const void* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(row) + b);
}

constexpr int64_t kAhead = 8;  // entries

// Where the numbers of entry e are.
template <class I>
TORCH_GAS_LOOP int64_t position(const Sparse<I>& matrix, int64_t e) {
  return matrix.order ? int64_t{matrix.order[e]} : e;
}

// Elements that are computed at a time: the length is known to the compiler.
constexpr int64_t kLanes = 8;

// sum[c] += w[0] * x[0][c] + ... for the columns [begin, end), with `kRows` rows at a time, so that
// the sums are read and written once for all of them.
template <int kRows, class T>
TORCH_GAS_LOOP void add_rows(T* __restrict sum, const T* const* x, const T* w, int64_t begin,
                             int64_t end) {
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) {
    T lanes[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] = sum[c + k];
    for (int r = 0; r < kRows; ++r) {
      for (int64_t k = 0; k < kLanes; ++k) lanes[k] += w[r] * x[r][c + k];
    }
    for (int64_t k = 0; k < kLanes; ++k) sum[c + k] = lanes[k];
  }
  for (; c < end; ++c) {
    for (int r = 0; r < kRows; ++r) sum[c] += w[r] * x[r][c];
  }
}

// The same with ones for `w`.
template <int kRows, class T>
TORCH_GAS_LOOP void add_rows(T* __restrict sum, const T* const* x, int64_t begin, int64_t end) {
  T ones[kRows];
  for (T& one : ones) one = T(1);
  add_rows<kRows>(sum, x, ones, begin, end);
}

}  // namespace torch_gas
