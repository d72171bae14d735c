// What loops over the entries of a sparse matrix share: checks, prefetches, sums of rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../check.h"
#include "../parallel.h"
#include "../simd.h"
#include "product.h"

namespace torch_gas {

// Checks where rows end, and the columns of the entries before.
template <class I>
void check_parts(const char* call, const Sparse<I>& matrix, int threads) {
  FirstBad bad_end, bad_col;
  parallel_for(matrix.num_rows, kGrain / 16, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = matrix.rowptr[i], stop = matrix.end[i];
      if (stop < first || stop > matrix.rowptr[i + 1]) return bad_end.report(i);
      for (int64_t e = first; e < stop; ++e) {
        if (!in_range(matrix.col[e], matrix.num_cols)) return bad_col.report(e);
      }
    }
  });
  if (bad_end.found()) {
    const int64_t i = bad_end.position();
    check_value(false, call, ": row ", i, " must end between rowptr[", i, "] and rowptr[", i + 1,
                "], ", matrix.rowptr[i], " and ", matrix.rowptr[i + 1], ", but ends[", i, "] is ",
                matrix.end[i]);
  }
  check_reported(bad_col, call, "col", matrix.col, matrix.num_cols);
}

template <class I>
void check_sparse(const char* call, const Sparse<I>& matrix, int threads) {
  check_rowptr(call, matrix.rowptr, 0, matrix.num_rows, matrix.nnz, threads);
  check_value(matrix.rowptr[0] == 0 && matrix.rowptr[matrix.num_rows] == matrix.nnz, call,
              ": `rowptr` must go from 0 to the length of `col` (", matrix.nnz, "), but goes from ",
              matrix.rowptr[0], " to ", matrix.rowptr[matrix.num_rows]);
  if (matrix.end == nullptr) {
    check_ids(call, "col", matrix.col, matrix.nnz, matrix.num_cols, threads);
  } else {
    check_parts(call, matrix, threads);
  }
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

// Where the entries of a row end.
template <class I>
TORCH_GAS_LOOP int64_t row_end(const Sparse<I>& matrix, int64_t row) {
  return matrix.end ? int64_t{matrix.end[row]} : int64_t{matrix.rowptr[row + 1]};
}

// The entries of a row, and what is left out between them and the next row.
struct Run {
  int64_t stop, gap;
};

// The entry that comes kAhead entries later, about: the next row may be short.
TORCH_GAS_LOOP int64_t entry_ahead(int64_t e, Run row, int64_t last) {
  const int64_t ahead = e + kAhead;
  return std::min(ahead < row.stop ? ahead : ahead + row.gap, last);
}

// An entry between rows may have any column.
template <class I>
TORCH_GAS_LOOP int64_t column_ahead(const Sparse<I>& matrix, int64_t ahead) {
  return std::min<uint64_t>(matrix.col[ahead], matrix.num_cols - 1);
}

// Where the numbers of entry e are.
template <class I>
TORCH_GAS_LOOP int64_t position(const Sparse<I>& matrix, int64_t e) {
  return matrix.order ? int64_t{matrix.order[e]} : e;
}

// Elements that are computed at a time: the length is known to the compiler.
constexpr int64_t kLanes = 8;

TORCH_GAS_LOOP float to_sum(float x) {
  return x;
}
TORCH_GAS_LOOP double to_sum(double x) {
  return x;
}
TORCH_GAS_LOOP float to_sum(BFloat16 x) {
  return to_float(x);
}

// sum[c] += w[0] * x[0][c] + ... for the columns [begin, end), with `kRows` rows at a time, so that
// the sums are read and written once for all of them.
template <int kRows, class R, class T>
TORCH_GAS_LOOP void add_rows(T* __restrict sum, const R* const* x, const T* w, int64_t begin,
                             int64_t end) {
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) {
    T lanes[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] = sum[c + k];
    for (int r = 0; r < kRows; ++r) {
      for (int64_t k = 0; k < kLanes; ++k) lanes[k] += w[r] * to_sum(x[r][c + k]);
    }
    for (int64_t k = 0; k < kLanes; ++k) sum[c + k] = lanes[k];
  }
  for (; c < end; ++c) {
    for (int r = 0; r < kRows; ++r) sum[c] += w[r] * to_sum(x[r][c]);
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
