// Loops of convert.h that compilers do not turn into good vector instructions, written out for
// x86-64 with AVX2 and F16C. Results are those of the plain loops, but for the payloads of NaN.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "../dtype.h"

#define TORCH_GAS_WITH_AVX2
#define TORCH_GAS_AVX2 __attribute__((target("avx2,f16c")))

namespace torch_gas::avx2 {

inline bool is_there() {
  static const bool found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  return found;
}

// Copies whole lines to the start of a line, around the caches.
TORCH_GAS_AVX2 inline void stream(char* to, const char* from, int64_t bytes) {
  for (const char* end = from + bytes; from != end; from += 64, to += 64) {
    const auto* x = reinterpret_cast<const __m256i*>(from);
    auto* y = reinterpret_cast<__m256i*>(to);
    const __m256i a = _mm256_loadu_si256(x), b = _mm256_loadu_si256(x + 1);
    _mm256_stream_si256(y, a);
    _mm256_stream_si256(y + 1, b);
  }
}

TORCH_GAS_AVX2 inline void half_to_float(char* to, const char* from, int64_t n) {
  const auto* x = reinterpret_cast<const Half*>(from);
  auto* y = reinterpret_cast<float*>(to);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(half));
  }
  for (; i < n; ++i) y[i] = to_float(x[i]);
}

TORCH_GAS_AVX2 inline void float_to_half(char* to, const char* from, int64_t n) {
  const auto* x = reinterpret_cast<const float*>(from);
  auto* y = reinterpret_cast<Half*>(to);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), half);
  }
  for (; i < n; ++i) from_float(x[i], y[i]);
}

// The upper halves of eight numbers, rounded as from_float() does.
TORCH_GAS_AVX2 inline __m256i round_to_bfloat16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), quiet = _mm256_set1_epi32(0x40);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i is_odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, quiet), is_nan);
}

TORCH_GAS_AVX2 inline void float_to_bfloat16(char* to, const char* from, int64_t n) {
  const auto* x = reinterpret_cast<const float*>(from);
  auto* y = reinterpret_cast<BFloat16*>(to);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i low = round_to_bfloat16(_mm256_loadu_ps(x + i));
    const __m256i high = round_to_bfloat16(_mm256_loadu_ps(x + i + 8));
    const __m256i packed =
        _mm256_packus_epi32(low, high);  // in halves of both, which are put in order
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  for (; i < n; ++i) from_float(x[i], y[i]);
}

// The largest magnitude_bits() of n numbers.
TORCH_GAS_AVX2 inline uint32_t largest_magnitude(const char* from, int64_t n) {
  const auto* x = reinterpret_cast<const float*>(from);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest[4] = {};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int k = 0; k < 4; ++k) {
      const auto* bits = reinterpret_cast<const __m256i*>(x + i + 8 * k);
      largest[k] =
          _mm256_max_epu32(largest[k], _mm256_and_si256(_mm256_loadu_si256(bits), magnitude));
    }
  }
  uint32_t lanes[8], found = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes),
                      _mm256_max_epu32(_mm256_max_epu32(largest[0], largest[1]),
                                       _mm256_max_epu32(largest[2], largest[3])));
  for (const uint32_t lane : lanes) found = std::max(found, lane);
  for (; i < n; ++i) found = std::max(found, magnitude_bits(x[i]));
  return found;
}

// n numbers as to_scaled<Int8>() has them. Packing saturates at 127 and -128.
TORCH_GAS_AVX2 inline void float_to_int8(char* to, const char* from, int64_t n, float scale) {
  const auto* x = reinterpret_cast<const float*>(from);
  auto* q = reinterpret_cast<Int8*>(to);
  const __m256 divisor = _mm256_set1_ps(scale);
  const __m256i least = _mm256_set1_epi8(-127);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works in halves
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    __m256i whole[4];
    for (int k = 0; k < 4; ++k) {
      whole[k] = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x + i + 8 * k), divisor));
    }
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                              _mm256_packs_epi32(whole[2], whole[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i),
                        _mm256_permutevar8x32_epi32(_mm256_max_epi8(packed, least), order));
  }
  for (; i < n; ++i) q[i] = to_scaled<Int8>(x[i], scale);
}

}  // namespace torch_gas::avx2
#endif
