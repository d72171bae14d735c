// Loops that move contiguous rows from one element type to another, written around the caches if
// asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dtype.h"
#include "../simd.h"
#include "convert_avx2.h"

namespace torch_gas {

constexpr int64_t kLine = 64;  // bytes that caches move together

// Copies whole lines to the start of a line. Only AVX2's stores do so around the caches: narrower
// ones are joined to lines on the way, and lines that are not full in time cost more than they
// save.
using Stream = void (*)(char* to, const char* from, int64_t bytes);

inline Stream fastest_stream() {
#ifdef TORCH_GAS_WITH_AVX2
  if (avx2::is_there()) return avx2::stream;
#endif
  return [](char* to, const char* from, int64_t bytes) { std::memcpy(to, from, bytes); };
}

// Makes streamed rows visible to other threads.
inline void finish_stream() {
#ifdef TORCH_GAS_WITH_AVX2
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

// Adds n numbers to others of the same type or a wider one.
template <class From, class To>
struct Add {
  TORCH_GAS_LOOP static void run(char* to, const char* from, int64_t n) {
    const From* x = reinterpret_cast<const From*>(from);
    To* y = reinterpret_cast<To*>(to);
    if constexpr (std::is_same_v<From, To>) {
      for (int64_t i = 0; i < n; ++i) y[i] += x[i];
    } else {
      for (int64_t i = 0; i < n; ++i) y[i] += to_float(x[i]);
    }
  }
};

// The largest magnitude_bits() of n numbers.
template <class From>
struct LargestMagnitude {
  TORCH_GAS_LOOP static uint32_t run(const char* from, int64_t n) {
    const From* x = reinterpret_cast<const From*>(from);
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, magnitude_bits(to_float(x[i])));
    return largest;
  }
};

// n numbers of a row to scaled elements Q.
template <class From, class Q>
struct ToScaled {
  TORCH_GAS_LOOP static void run(char* to, const char* from, int64_t n, float scale) {
    const From* x = reinterpret_cast<const From*>(from);
    auto* q = reinterpret_cast<Q*>(to);
    for (int64_t i = 0; i < n; ++i) q[i] = to_scaled<Q>(to_float(x[i]), scale);
  }
};

// n numbers of a row of scaled elements Q.
template <class Q, class To>
struct FromScaled {
  TORCH_GAS_LOOP static void run(char* to, const char* from, int64_t n, float scale) {
    const auto* q = reinterpret_cast<const Q*>(from);
    To* y = reinterpret_cast<To*>(to);
    for (int64_t i = 0; i < n; ++i) from_float(to_float(q[i]) * scale, y[i]);
  }
};

template <class From, class To>
void convert_numbers(char* to, const char* from, int64_t n) {
#ifdef TORCH_GAS_WITH_AVX2
  if constexpr (std::is_same_v<From, Half> && std::is_same_v<To, float>) {
    if (avx2::is_there()) return avx2::half_to_float(to, from, n);
  }
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, Half>) {
    if (avx2::is_there()) return avx2::float_to_half(to, from, n);
  }
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, BFloat16>) {
    if (avx2::is_there()) return avx2::float_to_bfloat16(to, from, n);
  }
#endif
  run_loop<Convert<From, To>>(to, from, n);
}

template <class From, class Q>
void scale_row(char* to, const char* from, int64_t num_cols) {
  auto largest_magnitude = run_loop<LargestMagnitude<From>, const char*, int64_t>;
  auto convert = run_loop<ToScaled<From, Q>, char*, const char*, int64_t, float>;
#ifdef TORCH_GAS_WITH_AVX2
  if (std::is_same_v<From, float> && avx2::is_there()) {
    largest_magnitude = avx2::largest_magnitude;
    if (std::is_same_v<Q, Int8>) convert = avx2::float_to_int8;
  }
#endif
  const float scale = row_scale<Q>(largest_magnitude(from, num_cols));
  std::memcpy(to + num_cols, &scale, sizeof scale);
  if (scale > 0) {
    convert(to, from, num_cols, scale);
  } else {
    std::memset(to, 0, num_cols);
  }
}

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
// other. Rows of scaled elements are never streamed: their lines are shared with their neighbours.
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
  const bool to_is_scaled = dispatch_scaled(to_type, [&](auto element) {
    dispatch_float(from_type, [&](auto value) {
      loop([=](char* to, const char* from, int64_t rows) {
        for (; rows > 0; --rows, to += to_bytes, from += from_bytes) {
          scale_row<decltype(value), decltype(element)>(to, from, num_cols);
        }
      });
    });
  });
  if (to_is_scaled) return;
  const bool from_is_scaled = dispatch_scaled(from_type, [&](auto element) {
    dispatch_float(to_type, [&](auto value) {
      loop([=](char* to, const char* from, int64_t rows) {
        for (; rows > 0; --rows, to += to_bytes, from += from_bytes) {
          float scale;
          std::memcpy(&scale, from + num_cols, sizeof scale);
          const auto convert = [=](char* y, const char* x, int64_t n) {
            run_loop<FromScaled<decltype(element), decltype(value)>>(y, x, n, scale);
          };
          if (streamed) {
            convert_streamed(stream, to, to_size, from, from_size, num_cols, convert);
          } else {
            convert(to, from, num_cols);
          }
        }
      });
    });
  });
  if (from_is_scaled) return;
  dispatch_float(from_type, [&](auto from_value) {
    dispatch_float(to_type, [&](auto to_value) {
      const auto convert = convert_numbers<decltype(from_value), decltype(to_value)>;
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

// Calls loop(add) with add(to, from, n), which adds n numbers.
template <class Loop>
void with_add(DType from_type, DType to_type, const Loop& loop) {
  dispatch_float(from_type, [&](auto from_value) {
    dispatch_float(to_type, [&](auto to_value) {
      using From = std::decay_t<decltype(from_value)>;
      using To = std::decay_t<decltype(to_value)>;
      if constexpr (sizeof(To) >= sizeof(float) && sizeof(From) <= sizeof(To)) {
        return loop(run_loop<Add<From, To>, char*, const char*, int64_t>);
      }
      throw std::invalid_argument(kNarrowSums);
    });
  });
}

}  // namespace torch_gas
