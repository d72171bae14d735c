#include "reductions.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "entries.h"

namespace torch_gas {
namespace {

// The rows of several entries, and, while these are computed with, a request for later ones.
template <int kRows, class I, class T>
TORCH_GAS_LOOP void find_rows(const Sparse<I>& matrix, const T* rows, const T** found,
                              int64_t width, int64_t e, int64_t last) {
  for (int r = 0; r < kRows; ++r) {
    const int64_t next = column_ahead(matrix, std::min(e + r + kAhead, last));
    prefetch(rows + next * width, width * sizeof(T));
    found[r] = rows + matrix.col[e + r] * width;
  }
}

// sum[c] += (x[0][c] - mean[c])^2 + ...
template <int kRows, class T>
TORCH_GAS_LOOP void add_squares(T* __restrict sum, const T* mean, const T* const* x,
                                int64_t width) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    T lanes[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] = sum[c + k];
    for (int r = 0; r < kRows; ++r) {
      for (int64_t k = 0; k < kLanes; ++k) {
        const T far = x[r][c + k] - mean[c + k];
        lanes[k] += far * far;
      }
    }
    for (int64_t k = 0; k < kLanes; ++k) sum[c + k] = lanes[k];
  }
  for (; c < width; ++c) {
    for (int r = 0; r < kRows; ++r) sum[c] += (x[r][c] - mean[c]) * (x[r][c] - mean[c]);
  }
}

// One more number x, for the smallest or largest so far and how many there are of it. NaN stays.
// Without a branch, and with factors in place of choices, which compilers know to vectorise.
template <bool kLeast, class T>
TORCH_GAS_LOOP void compare(T& best, T& ties, T x) {
  const bool better = (kLeast ? x < best : x > best) | (x != x);
  const T now = better ? x : best;
  ties = ties * static_cast<T>(now == best) + static_cast<T>(x == now);
  best = now;
}

template <int kRows, bool kLeast, class T>
TORCH_GAS_LOOP void compare_rows(T* __restrict best, T* __restrict ties, const T* const* rows,
                                 int64_t width) {
  const T* x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = rows[r];
  for (int64_t c = 0; c < width; ++c) {
    T least = best[c], number = ties[c];
    for (int r = 0; r < kRows; ++r) compare<kLeast>(least, number, x[r][c]);
    best[c] = least;
    ties[c] = number;
  }
}

// Row i of a result, if there is one.
template <class T>
TORCH_GAS_LOOP T* row_of(T* rows, int64_t i, int64_t width) {
  return rows ? rows + i * width : nullptr;
}

template <class I, class T>
struct Reduce {
  static TORCH_GAS_LOOP void run(Sparse<I> matrix, const T* rows, Reductions<T> all, int64_t width,
                                 int64_t begin, int64_t end) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    const int64_t last = matrix.rowptr[end] - 1;
    for (int64_t i = begin; i < end; ++i) {
      const Reductions<T> out{row_of(all.mean, i, width),  row_of(all.variance, i, width),
                              row_of(all.least, i, width), row_of(all.least_ties, i, width),
                              row_of(all.most, i, width),  row_of(all.most_ties, i, width)};
      const int64_t start = matrix.rowptr[i], stop = row_end(matrix, i);
      for (T* sum : {out.mean, out.variance, out.least_ties, out.most_ties}) {
        if (sum) std::fill(sum, sum + width, T(0));
      }
      if (out.least) std::fill(out.least, out.least + width, start < stop ? kInfinity : T(0));
      if (out.most) std::fill(out.most, out.most + width, start < stop ? -kInfinity : T(0));
      int64_t e = start;
      for (; e + 4 <= stop; e += 4) reduce<4>(matrix, rows, out, width, e, last);
      for (; e + 2 <= stop; e += 2) reduce<2>(matrix, rows, out, width, e, last);
      for (; e < stop; ++e) reduce<1>(matrix, rows, out, width, e, last);
      if (start == stop) continue;
      const T share = T(1) / static_cast<T>(stop - start);
      if (out.mean) scale(out.mean, share, width);
      if (!out.variance) continue;
      // Once more, now that the mean is known; the rows are in a cache.
      for (e = start; e + 2 <= stop; e += 2) deviate<2>(matrix, rows, out, width, e);
      for (; e < stop; ++e) deviate<1>(matrix, rows, out, width, e);
      scale(out.variance, share, width);
    }
  }

  static TORCH_GAS_LOOP void scale(T* row, T factor, int64_t width) {
    for (int64_t c = 0; c < width; ++c) row[c] *= factor;
  }

  template <int kRows>
  static TORCH_GAS_LOOP void reduce(const Sparse<I>& matrix, const T* rows,
                                    const Reductions<T>& out, int64_t width, int64_t e,
                                    int64_t last) {
    const T* x[kRows];
    find_rows<kRows>(matrix, rows, x, width, e, last);
    if (out.mean) add_rows<kRows>(out.mean, x, 0, width);
    if (out.least) compare_rows<kRows, true>(out.least, out.least_ties, x, width);
    if (out.most) compare_rows<kRows, false>(out.most, out.most_ties, x, width);
  }

  template <int kRows>
  static TORCH_GAS_LOOP void deviate(const Sparse<I>& matrix, const T* rows,
                                     const Reductions<T>& out, int64_t width, int64_t e) {
    const T* x[kRows];
    for (int r = 0; r < kRows; ++r) x[r] = rows + matrix.col[e + r] * width;
    add_squares<kRows>(out.variance, out.mean, x, width);
  }
};

// sum[c] += grad[0][c] if x[c] is best[0][c], and so on.
template <int kRows, class T>
TORCH_GAS_LOOP void add_where_equal(T* __restrict sum, const T* x, const T* const* best,
                                    const T* const* grad, int64_t width) {
  const T *b[kRows], *g[kRows];
  for (int r = 0; r < kRows; ++r) b[r] = best[r], g[r] = grad[r];
  for (int64_t c = 0; c < width; ++c) {
    T more = sum[c];
    for (int r = 0; r < kRows; ++r) more += static_cast<T>(x[c] == b[r][c]) * g[r][c];
    sum[c] = more;
  }
}

template <class I, class T>
struct ReduceBackward {
  static TORCH_GAS_LOOP void run(Sparse<I> matrix, const T* rows, ReductionsGradient<T> grad,
                                 T* out, T* slope, int64_t width, int64_t begin, int64_t end) {
    const int64_t last = matrix.rowptr[end] - 1;
    for (int64_t i = begin; i < end; ++i) {
      const T* x = rows + i * width;
      T* sum = out + i * width;
      std::fill(sum, sum + width, T(0));
      std::fill(slope, slope + width, T(0));
      int64_t e = matrix.rowptr[i];
      const int64_t stop = row_end(matrix, i);
      for (; e + 4 <= stop; e += 4) add<4>(matrix, x, grad, sum, slope, width, e, last);
      for (; e + 2 <= stop; e += 2) add<2>(matrix, x, grad, sum, slope, width, e, last);
      for (; e < stop; ++e) add<1>(matrix, x, grad, sum, slope, width, e, last);
      if (!grad.slope) continue;
      for (int64_t c = 0; c < width; ++c) sum[c] += slope[c] * x[c];
    }
  }

  template <int kRows>
  static TORCH_GAS_LOOP void add(const Sparse<I>& matrix, const T* x,
                                 const ReductionsGradient<T>& grad, T* sum, T* slope, int64_t width,
                                 int64_t e, int64_t last) {
    const T *found[kRows], *best[kRows];
    if (grad.constant) {
      find_rows<kRows>(matrix, grad.constant, found, width, e, last);
      add_rows<kRows>(sum, found, 0, width);
    }
    if (grad.slope) {
      find_rows<kRows>(matrix, grad.slope, found, width, e, last);
      add_rows<kRows>(slope, found, 0, width);
    }
    if (grad.least) {
      find_rows<kRows>(matrix, grad.least, best, width, e, last);
      find_rows<kRows>(matrix, grad.grad_least, found, width, e, last);
      add_where_equal<kRows>(sum, x, best, found, width);
    }
    if (grad.most) {
      find_rows<kRows>(matrix, grad.most, best, width, e, last);
      find_rows<kRows>(matrix, grad.grad_most, found, width, e, last);
      add_where_equal<kRows>(sum, x, best, found, width);
    }
  }
};

}  // namespace

template <class I, class T>
void reductions(const Sparse<I>& matrix, const T* rows, const Reductions<T>& out, int64_t width,
                int threads) {
  check_sparse("reductions", matrix, threads);
  parallel_for(matrix.num_rows, rows_grain(matrix, width), threads,
               [&](int64_t begin, int64_t end) {
                 run_loop<Reduce<I, T>>(matrix, rows, out, width, begin, end);
               });
}

template <class I, class T>
void reductions_backward(const Sparse<I>& matrix, const T* rows, const ReductionsGradient<T>& grad,
                         T* out, int64_t width, int threads) {
  check_sparse("reductions_backward", matrix, threads);
  parallel_for(
      matrix.num_rows, rows_grain(matrix, width), threads, [&](int64_t begin, int64_t end) {
        std::vector<T> slope(width);
        run_loop<ReduceBackward<I, T>>(matrix, rows, grad, out, slope.data(), width, begin, end);
      });
}

#define TORCH_GAS_INSTANTIATE(I, T)                                                               \
  template void reductions(const Sparse<I>&, const T*, const Reductions<T>&, int64_t, int);       \
  template void reductions_backward(const Sparse<I>&, const T*, const ReductionsGradient<T>&, T*, \
                                    int64_t, int);
TORCH_GAS_INSTANTIATE(int32_t, float)
TORCH_GAS_INSTANTIATE(int32_t, double)
TORCH_GAS_INSTANTIATE(int64_t, float)
TORCH_GAS_INSTANTIATE(int64_t, double)
#undef TORCH_GAS_INSTANTIATE

}  // namespace torch_gas
