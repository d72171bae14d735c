#include "product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../simd.h"
#include "entries.h"

namespace torch_gas {
namespace {

template <class I, class T>
struct Product {
  static TORCH_GAS_LOOP void run(Sparse<I> matrix, const T* weight, const T* rows, const T* gate,
                                 T* out, int64_t heads, int64_t width, int64_t begin, int64_t end) {
    const int64_t last = matrix.rowptr[end] - 1;
    for (int64_t i = begin; i < end; ++i) {
      T* sum = out + i * heads * width;
      std::fill(sum, sum + heads * width, T(0));
      int64_t e = matrix.rowptr[i];
      const int64_t stop = matrix.rowptr[i + 1];
      for (; e + 4 <= stop; e += 4) add<4>(matrix, weight, rows, sum, heads, width, e, last);
      for (; e + 2 <= stop; e += 2) add<2>(matrix, weight, rows, sum, heads, width, e, last);
      for (; e < stop; ++e) add<1>(matrix, weight, rows, sum, heads, width, e, last);
      if (gate) close(sum, gate + i * heads * width, heads * width);
    }
  }

  static TORCH_GAS_LOOP void close(T* __restrict sum, const T* gate, int64_t size) {
    for (int64_t c = 0; c < size; ++c) sum[c] = gate[c] > 0 ? sum[c] : T(0);
  }

  template <int kRows>
  static TORCH_GAS_LOOP void add(const Sparse<I>& matrix, const T* weight, const T* rows, T* sum,
                                 int64_t heads, int64_t width, int64_t e, int64_t last) {
    const int64_t columns = heads * width;
    const T* x[kRows];
    int64_t at[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t ahead = std::min(e + r + kAhead, last);
      prefetch(rows + matrix.col[ahead] * columns, columns * sizeof(T));
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

template <class I, class T>
void product(const Sparse<I>& matrix, const T* weight, const T* rows, const T* gate, T* out,
             int64_t heads, int64_t width, int threads) {
  check_sparse("product", matrix, threads);
  parallel_for(matrix.num_rows, rows_grain(matrix, heads * width), threads,
               [&](int64_t begin, int64_t end) {
                 run_loop<Product<I, T>>(matrix, weight, rows, gate, out, heads, width, begin, end);
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

#define TORCH_GAS_INSTANTIATE(I, T)                                                           \
  template void product(const Sparse<I>&, const T*, const T*, const T*, T*, int64_t, int64_t, \
                        int);                                                                 \
  template void entry_dots(const Sparse<I>&, const T*, const T*, T*, int64_t, int64_t, int);  \
  template void entry_softmax(const Sparse<I>&, const T*, const T*, T, T*, int64_t, int);     \
  template void entry_softmax_backward(const Sparse<I>&, const T*, const T*, T, const T*,     \
                                       const T*, T*, T*, int64_t, int);
TORCH_GAS_INSTANTIATE(int32_t, float)
TORCH_GAS_INSTANTIATE(int32_t, double)
TORCH_GAS_INSTANTIATE(int64_t, float)
TORCH_GAS_INSTANTIATE(int64_t, double)
#undef TORCH_GAS_INSTANTIATE

}  // namespace torch_gas
