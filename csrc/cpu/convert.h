// Loops that move contiguous rows from one element type to another, written around the caches if
// asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../dtype.h"
#include "../simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TORCH_GAS_AVX2 __attribute__((target("avx2")))
#include <immintrin.h>
#endif

namespace torch_gas {

constexpr int64_t kLine = 64;  // bytes that caches move together

// Copies whole lines to the start of a line. Only AVX2's stores do so around the caches: narrower
// ones are joined to lines on the way, and lines that are not full in time cost more than they
// save.
using Stream = void (*)(char* to, const char* from, int64_t bytes);

inline void stream_plain(char* to, const char* from, int64_t bytes) {
  std::memcpy(to, from, bytes);
}

#ifdef TORCH_GAS_AVX2
TORCH_GAS_AVX2 inline void stream_avx2(char* to, const char* from, int64_t bytes) {
  for (const char* end = from + bytes; from != end; from += kLine, to += kLine) {
    const auto* x = reinterpret_cast<const __m256i*>(from);
    auto* y = reinterpret_cast<__m256i*>(to);
    const __m256i a = _mm256_loadu_si256(x), b = _mm256_loadu_si256(x + 1);
    _mm256_stream_si256(y, a);
    _mm256_stream_si256(y + 1, b);
  }
}
#endif

inline Stream fastest_stream() {
#ifdef TORCH_GAS_AVX2
  if (__builtin_cpu_supports("avx2")) return stream_avx2;
#endif
  return stream_plain;
}

// Makes streamed rows visible to other threads.
inline void finish_stream() {
#ifdef TORCH_GAS_AVX2
  _mm_sfence();
#endif
}

// n numbers, of one row or of several.
template <class From, class To>
struct Convert {
  TORCH_GAS_LOOP static void run(char* to, const char* from, int64_t n) {
    const From* x = reinterpret_cast<const From*>(from);
    To* y = reinterpret_cast<To*>(to);
    for (int64_t i = 0; i < n; ++i) y[i] = convert<From, To>(x[i]);
  }
};

// One row to int8.
template <class From>
struct Quantize {
  TORCH_GAS_LOOP static void run(char* to, const char* from, int64_t num_cols) {
    const From* x = reinterpret_cast<const From*>(from);
    uint32_t largest = 0;
    for (int64_t i = 0; i < num_cols; ++i) {
      largest = std::max(largest, magnitude_bits(to_float(x[i])));
    }
    const float scale = int8_scale(largest);
    std::memcpy(to + num_cols, &scale, sizeof scale);
    if (!(scale > 0)) {
      std::memset(to, 0, num_cols);
      return;
    }
    auto* q = reinterpret_cast<int8_t*>(to);
    for (int64_t i = 0; i < num_cols; ++i) q[i] = to_int8(to_float(x[i]), scale);
  }
};

// n int8 numbers of one row.
template <class To>
struct Dequantize {
  TORCH_GAS_LOOP static void run(char* to, const char* from, int64_t n, float scale) {
    const auto* q = reinterpret_cast<const int8_t*>(from);
    To* y = reinterpret_cast<To*>(to);
    for (int64_t i = 0; i < n; ++i) from_float(q[i] * scale, y[i]);
  }
};

// Calls convert(to, from, n) on blocks of n numbers that stay in the first cache, and writes them
// around it.
template <class F>
void convert_streamed(Stream stream, char* to, int64_t to_size, const char* from, int64_t from_size,
                      int64_t n, const F& convert) {
  constexpr int64_t kBlock = 512;
  alignas(kLine) char block[kBlock * sizeof(double)];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    convert(block, from + i * from_size, count);
    stream(to + i * to_size, block, count * to_size);
  }
}

// Calls loop(copy) with copy(to, from, num_rows), which moves contiguous rows from one type to the
// other. Rows that become int8 are never streamed: their lines are shared with their neighbours.
template <class Loop>
void with_copy(DType from_type, DType to_type, int64_t num_cols, bool streamed, const Loop& loop) {
  const int64_t from_size = element_size(from_type), to_size = element_size(to_type);
  const int64_t from_bytes = row_bytes(from_type, num_cols),
                to_bytes = row_bytes(to_type, num_cols);
  const Stream stream = fastest_stream();
  if (from_type == to_type) {
    if (streamed) {
      return loop(
          [=](char* to, const char* from, int64_t rows) { stream(to, from, rows * to_bytes); });
    }
    return loop(
        [=](char* to, const char* from, int64_t rows) { std::memcpy(to, from, rows * to_bytes); });
  }
  if (to_type == DType::i8) {
    return dispatch_float(from_type, [&](auto value) {
      loop([=](char* to, const char* from, int64_t rows) {
        for (; rows > 0; --rows, to += to_bytes, from += from_bytes) {
          run_loop<Quantize<decltype(value)>>(to, from, num_cols);
        }
      });
    });
  }
  if (from_type == DType::i8) {
    return dispatch_float(to_type, [&](auto value) {
      loop([=](char* to, const char* from, int64_t rows) {
        for (; rows > 0; --rows, to += to_bytes, from += from_bytes) {
          float scale;
          std::memcpy(&scale, from + num_cols, sizeof scale);
          const auto convert = [=](char* y, const char* x, int64_t n) {
            run_loop<Dequantize<decltype(value)>>(y, x, n, scale);
          };
          if (streamed) {
            convert_streamed(stream, to, to_size, from, from_size, num_cols, convert);
          } else {
            convert(to, from, num_cols);
          }
        }
      });
    });
  }
  dispatch_float(from_type, [&](auto from_value) {
    dispatch_float(to_type, [&](auto to_value) {
      const auto convert = [](char* y, const char* x, int64_t n) {
        run_loop<Convert<decltype(from_value), decltype(to_value)>>(y, x, n);
      };
      loop([=](char* to, const char* from, int64_t rows) {
        if (streamed) {
          convert_streamed(stream, to, to_size, from, from_size, rows * num_cols, convert);
        } else {
          convert(to, from, rows * num_cols);
        }
      });
    });
  });
}

}  // namespace torch_gas
