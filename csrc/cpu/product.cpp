#include "product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../simd.h"
#include "entries.h"

namespace torch_gas {
namespace {

// Rows of R are summed up in T. `scratch` holds the sums of a row where R is narrower.
template <class I, class R, class T>
struct Product {
  static TORCH_GAS_LOOP void run(Sparse<I> matrix, const T* weight, const R* rows, const R* gate,
                                 R* out, T* scratch, int64_t heads, int64_t width, bool mean,
                                 int64_t begin, int64_t end) {
    const int64_t last = matrix.rowptr[end] - 1, columns = heads * width;
    for (int64_t i = begin; i < end; ++i) {
      T* sum = scratch;
      if constexpr (std::is_same_v<R, T>) sum = out + i * columns;
      std::fill(sum, sum + columns, T(0));
      int64_t e = matrix.rowptr[i];
      const int64_t stop = row_end(matrix, i), count = stop - e;
      const Run row{stop, matrix.rowptr[i + 1] - stop};
      for (; e + 4 <= stop; e += 4) add<4>(matrix, weight, rows, sum, heads, width, e, row, last);
      for (; e + 2 <= stop; e += 2) add<2>(matrix, weight, rows, sum, heads, width, e, row, last);
      for (; e < stop; ++e) add<1>(matrix, weight, rows, sum, heads, width, e, row, last);
      if (mean && count > 1) {
        for (int64_t c = 0; c < columns; ++c) sum[c] /= static_cast<T>(count);
      }
      if (gate) close(sum, gate + i * columns, columns);
      if constexpr (!std::is_same_v<R, T>) {
        for (int64_t c = 0; c < columns; ++c) from_float(sum[c], out[i * columns + c]);
      }
    }
  }

  static TORCH_GAS_LOOP void close(T* __restrict sum, const R* gate, int64_t size) {
    for (int64_t c = 0; c < size; ++c) sum[c] = to_sum(gate[c]) > 0 ? sum[c] : T(0);
  }

  template <int kRows>
  static TORCH_GAS_LOOP void add(const Sparse<I>& matrix, const T* weight, const R* rows, T* sum,
                                 int64_t heads, int64_t width, int64_t e, Run row, int64_t last) {
    const int64_t columns = heads * width;
    const R* x[kRows];
    int64_t at[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t ahead = entry_ahead(e + r, row, last);
      prefetch(rows + column_ahead(matrix, ahead) * columns, columns * sizeof(R));
      if (weight) prefetch(weight + position(matrix, ahead) * heads, heads * sizeof(T));
      x[r] = rows + matrix.col[e + r] * columns;
      at[r] = position(matrix, e + r);
    }
    for (int64_t h = 0; h < heads; ++h) {
      T w[kRows];
      for (int r = 0; r < kRows; ++r) w[r] = weight ? weight[at[r] * heads + h] : T(1);
      add_rows<kRows>(sum, x, w, h * width, (h + 1) * width);
    }
  }
};

template <class T>
TORCH_GAS_LOOP T dot(const T* a, const T* b, int64_t size) {
  T lanes[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= size; c += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += a[c + k] * b[c + k];
  }
  for (int64_t k = 0; k < 4; ++k) lanes[k] += lanes[k + 4];
  T sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  for (; c < size; ++c) sum += a[c] * b[c];
  return sum;
}

template <class I, class T>
struct EntryDots {
  static TORCH_GAS_LOOP void run(Sparse<I> matrix, const T* left, const T* right, T* out,
                                 int64_t heads, int64_t width, int64_t begin, int64_t end) {
    const int64_t columns = heads * width;
    const int64_t last = matrix.rowptr[end] - 1;
    for (int64_t i = begin; i < end; ++i) {
      const T* a = left + i * columns;
      for (int64_t e = matrix.rowptr[i]; e < matrix.rowptr[i + 1]; ++e) {
        prefetch(right + matrix.col[std::min(e + kAhead, last)] * columns, columns * sizeof(T));
        const T* b = right + matrix.col[e] * columns;
        T* to = out + position(matrix, e) * heads;
        for (int64_t h = 0; h < heads; ++h) to[h] = dot(a + h * width, b + h * width, width);
      }
    }
  }
};

// exp(x), for x <= 0 in float within 2 units in the last place, without a call or a branch.
TORCH_GAS_LOOP float exponential(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (std::max(x, -87.f) * kLog2E + kRound) - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  // The polynomial of Moshier's Cephes library.
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.f ? 0.f : y * power;
}

TORCH_GAS_LOOP double exponential(double x) {
  return std::exp(x);
}

template <class T>
TORCH_GAS_LOOP T leaky_relu(T x, T slope) {
  return x > 0 ? x : slope * x;
}

template <class I, class T>
struct EntrySoftmax {
  static TORCH_GAS_LOOP void run(Sparse<I> matrix, const T* left, const T* right, T slope, T* out,
                                 T* scratch, int64_t heads, int64_t begin, int64_t end) {
    T *most = scratch, *sum = scratch + heads;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = matrix.rowptr[i], stop = matrix.rowptr[i + 1];
      std::fill(most, most + heads, -std::numeric_limits<T>::infinity());
      std::fill(sum, sum + heads, T(0));
      for (int64_t e = start; e < stop; ++e) {
        const T* from = right + matrix.col[e] * heads;
        T* to = out + position(matrix, e) * heads;
        for (int64_t h = 0; h < heads; ++h) {
          const T x = leaky_relu(left[i * heads + h] + from[h], slope);
          to[h] = x;
          most[h] = x > most[h] || x != x ? x : most[h];
        }
      }
      for (int64_t e = start; e < stop; ++e) {
        T* to = out + position(matrix, e) * heads;
        for (int64_t h = 0; h < heads; ++h) {
          to[h] = exponential(to[h] - most[h]);
          sum[h] += to[h];
        }
      }
      for (int64_t e = start; e < stop; ++e) {
        T* to = out + position(matrix, e) * heads;
        for (int64_t h = 0; h < heads; ++h) to[h] /= sum[h];
      }
    }
  }
};

template <class I, class T>
struct EntrySoftmaxBackward {
  static TORCH_GAS_LOOP void run(Sparse<I> matrix, const T* left, const T* right, T slope,
                                 const T* softmax, const T* grad, T* grad_left, T* grad_entry,
                                 T* mean, int64_t heads, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = matrix.rowptr[i], stop = matrix.rowptr[i + 1];
      T* to = grad_left + i * heads;
      std::fill(mean, mean + heads, T(0));
      std::fill(to, to + heads, T(0));
      for (int64_t e = start; e < stop; ++e) {
        const int64_t at = position(matrix, e) * heads;
        for (int64_t h = 0; h < heads; ++h) mean[h] += softmax[at + h] * grad[at + h];
      }
      for (int64_t e = start; e < stop; ++e) {
        const T* from = right + matrix.col[e] * heads;
        const int64_t at = position(matrix, e) * heads;
        for (int64_t h = 0; h < heads; ++h) {
          const T slope_here = left[i * heads + h] + from[h] > 0 ? T(1) : slope;
          const T x = softmax[at + h] * (grad[at + h] - mean[h]) * slope_here;
          grad_entry[at + h] = x;
          to[h] += x;
        }
      }
    }
  }
};

}  // namespace

template <class I, class R, class T>
void product(const Sparse<I>& matrix, const T* weight, const R* rows, const R* gate, R* out,
             int64_t heads, int64_t width, bool mean, int threads) {
  check_sparse("product", matrix, threads);
  parallel_for(matrix.num_rows, rows_grain(matrix, heads * width), threads,
               [&](int64_t begin, int64_t end) {
                 std::vector<T> scratch(std::is_same_v<R, T> ? 0 : heads * width);
                 run_loop<Product<I, R, T>>(matrix, weight, rows, gate, out, scratch.data(), heads,
                                            width, mean, begin, end);
               });
}

template <class I, class T>
void entry_dots(const Sparse<I>& matrix, const T* left, const T* right, T* out, int64_t heads,
                int64_t width, int threads) {
  check_sparse("entry_dots", matrix, threads);
  parallel_for(matrix.num_rows, rows_grain(matrix, heads * width), threads,
               [&](int64_t begin, int64_t end) {
                 run_loop<EntryDots<I, T>>(matrix, left, right, out, heads, width, begin, end);
               });
}

template <class I, class T>
void entry_softmax(const Sparse<I>& matrix, const T* left, const T* right, T slope, T* out,
                   int64_t heads, int threads) {
  check_sparse("entry_softmax", matrix, threads);
  parallel_for(matrix.num_rows, rows_grain(matrix, heads), threads,
               [&](int64_t begin, int64_t end) {
                 std::vector<T> scratch(2 * heads);
                 run_loop<EntrySoftmax<I, T>>(matrix, left, right, slope, out, scratch.data(),
                                              heads, begin, end);
               });
}

template <class I, class T>
void entry_softmax_backward(const Sparse<I>& matrix, const T* left, const T* right, T slope,
                            const T* softmax, const T* grad, T* grad_left, T* grad_entry,
                            int64_t heads, int threads) {
  check_sparse("entry_softmax_backward", matrix, threads);
  parallel_for(
      matrix.num_rows, rows_grain(matrix, heads), threads, [&](int64_t begin, int64_t end) {
        std::vector<T> mean(heads);
        run_loop<EntrySoftmaxBackward<I, T>>(matrix, left, right, slope, softmax, grad, grad_left,
                                             grad_entry, mean.data(), heads, begin, end);
      });
}

#define TORCH_GAS_INSTANTIATE_PRODUCT(I, R, T)                                                \
  template void product(const Sparse<I>&, const T*, const R*, const R*, R*, int64_t, int64_t, \
                        bool, int);
#define TORCH_GAS_INSTANTIATE(I, T)                                                          \
  TORCH_GAS_INSTANTIATE_PRODUCT(I, T, T)                                                     \
  template void entry_dots(const Sparse<I>&, const T*, const T*, T*, int64_t, int64_t, int); \
  template void entry_softmax(const Sparse<I>&, const T*, const T*, T, T*, int64_t, int);    \
  template void entry_softmax_backward(const Sparse<I>&, const T*, const T*, T, const T*,    \
                                       const T*, T*, T*, int64_t, int);
TORCH_GAS_INSTANTIATE(int32_t, float)
TORCH_GAS_INSTANTIATE(int32_t, double)
TORCH_GAS_INSTANTIATE(int64_t, float)
TORCH_GAS_INSTANTIATE(int64_t, double)
TORCH_GAS_INSTANTIATE_PRODUCT(int32_t, BFloat16, float)
TORCH_GAS_INSTANTIATE_PRODUCT(int64_t, BFloat16, float)
#undef TORCH_GAS_INSTANTIATE_PRODUCT
#undef TORCH_GAS_INSTANTIATE

}  // namespace torch_gas
